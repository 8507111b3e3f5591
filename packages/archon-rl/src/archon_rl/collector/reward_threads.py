"""Rewards for concurrent groups: one thread per reward process, so that a reward that hangs delays its group alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from archon_core.errors import RewardError
from archon_rl.rewards.calls import Outcome, RewardCall, RewardRunner
from archon_rl.worker_threads import WorkerThreads


class RewardThreads:
    """Scores groups in threads. Each thread has a runner, which belongs to it from the start to the end.

    Args:
        build: builds a runner; called in each thread that gets a job.
        threads: their number.
    """

    def __init__(self, build: Callable[[], RewardRunner], threads: int) -> None:
        self._threads: WorkerThreads[RewardRunner, list[RewardCall], list[Outcome]] = WorkerThreads(
            build, _score, threads, "archon-rewards"
        )

    async def score(self, calls: Sequence[RewardCall]) -> list[Outcome]:
        """The outcome of each call. Raises an ArchonError that the function raised, other than a RewardError."""
        return await self._threads.run(list(calls))

    def close(self) -> None:
        """Let the threads end after their calls, which end their processes."""
        self._threads.close()


def _score(runner: RewardRunner, calls: list[RewardCall]) -> list[Outcome]:
    try:
        return runner.score(calls)
    except (SystemExit, KeyboardInterrupt) as error:  # of a reward in this process; they would end the event loop
        raise RewardError(f"reward: found {error!r}") from error
