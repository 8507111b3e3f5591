"""Rewards for concurrent groups: one thread per reward process, so that a reward that hangs delays its group alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from archon_core.errors import RewardError
from archon_core.plugins import registry
from archon_rl.fingerprint import Fingerprint
from archon_rl.rewards.calls import Outcome, RewardCall, RewardRunner
from archon_rl.rewards.in_process import InProcessRewards
from archon_rl.rewards.pool import RewardPool
from archon_rl.rewards.source import reward_source
from archon_rl.worker_threads import WorkerThreads


class RewardThreads:
    """Scores groups in threads. Each thread has a runner, which belongs to it from the start to the end.

    Args:
        build: builds a runner; called in each thread that gets a job.
        threads: their number.
    """

    def __init__(self, build: Callable[[], RewardRunner], threads: int) -> None:
        self._threads = WorkerThreads(build, _score, threads, "archon-rewards")

    async def score(self, calls: Sequence[RewardCall]) -> list[Outcome]:
        """The outcome of each call. Raises an ArchonError that the function raised, other than a RewardError."""
        return await self._threads.run(list(calls))

    def close(self) -> None:
        """Let the threads end after their calls, which end their processes."""
        self._threads.close()


def _score(runner: RewardRunner, calls: list[RewardCall]) -> list[Outcome]:
    try:
        return runner.score(calls)
    except SystemExit as error:  # of a reward in this process
        raise RewardError(f"reward: found {error!r}") from error


def reward_threads(config: Any, expected: Fingerprint, *, data_ranks: int = 1) -> RewardThreads:
    """Threads for the reward of a run.

    Args:
        config: the configuration.
        expected: fingerprint of the reward, which the processes must have.
        data_ranks: number of data ranks whose completions they score.
    """
    source, options = reward_source(config.reward, registry()), config.rewards

    def build() -> RewardRunner:
        if options.processes == 0:
            return InProcessRewards(source)
        return RewardPool(source, processes=1, timeout=options.timeout_seconds, expected=expected)

    return RewardThreads(build, max(1, options.processes * data_ranks))
