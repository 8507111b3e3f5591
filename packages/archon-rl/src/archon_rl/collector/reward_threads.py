"""Rewards for concurrent groups: one thread per reward process, so that a reward that hangs delays its group alone."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from archon_core.errors import RewardError
from archon_core.plugins import registry
from archon_rl.fingerprint import Fingerprint
from archon_rl.rewards.calls import Outcome, RewardCall, RewardRunner
from archon_rl.rewards.in_process import InProcessRewards
from archon_rl.rewards.pool import RewardPool
from archon_rl.rewards.source import reward_source

_Job = tuple[list[RewardCall], "asyncio.Future[list[Outcome]]", asyncio.AbstractEventLoop]


class RewardThreads:
    """Scores groups in threads. Each thread has a runner, which belongs to it from the start to the end.

    Args:
        build: builds a runner; called in each thread that gets a job.
        threads: their number.
    """

    def __init__(self, build: Callable[[], RewardRunner], threads: int) -> None:
        self._build = build
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"archon-rewards-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def score(self, calls: Sequence[RewardCall]) -> list[Outcome]:
        """The outcome of each call. Raises an ArchonError that the function raised, other than a RewardError."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Outcome]] = loop.create_future()
        self._jobs.put((list(calls), answer, loop))
        return await answer

    def close(self) -> None:
        """Let the threads end after their calls, which end their processes."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        runner: RewardRunner | None = None
        try:
            while (job := self._jobs.get()) is not None:
                calls, answer, loop = job
                try:
                    runner = runner or self._build()
                    outcomes = runner.score(calls)
                except BaseException as error:  # also of a reward that calls sys.exit() in this process
                    _deliver(loop, _set_error, answer, error)
                else:
                    _deliver(loop, _set_result, answer, outcomes)
        finally:
            if runner is not None:
                runner.close()


def reward_threads(config: Any, expected: Fingerprint) -> RewardThreads:
    """Threads for the reward of a run.

    Args:
        config: the configuration.
        expected: fingerprint of the reward, which the processes must have.
    """
    source, options = reward_source(config.reward, registry()), config.rewards

    def build() -> RewardRunner:
        if options.processes == 0:
            return InProcessRewards(source)
        return RewardPool(source, processes=1, timeout=options.timeout_seconds, expected=expected)

    return RewardThreads(build, max(1, options.processes))


def _deliver(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the collector ends
        loop.call_soon_threadsafe(call, *arguments)


def _set_result(answer: asyncio.Future[list[Outcome]], outcomes: list[Outcome]) -> None:
    if not answer.done():  # cancelled: nobody waits
        answer.set_result(outcomes)


def _set_error(answer: asyncio.Future[list[Outcome]], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error if isinstance(error, Exception) else RewardError(f"reward: found {error!r}"))
