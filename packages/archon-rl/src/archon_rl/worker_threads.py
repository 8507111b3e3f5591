"""Threads that each own a worker, such as a process, for calls from an event loop: a call that hangs delays no other
loop, and a worker is used by one thread from its start to its end.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Worker(Protocol):
    """What a thread owns."""

    def close(self) -> None: ...


Call = TypeVar("Call")
Answer = TypeVar("Answer")
W = TypeVar("W", bound=Worker)


class WorkerThreads(Generic[W, Call, Answer]):
    """Answers calls in threads.

    Args:
        build: builds a worker; called in each thread that gets a call.
        work: the answer of a worker to a call.
        threads: their number.
        name: of the threads.
    """

    def __init__(self, build: Callable[[], W], work: Callable[[W, Call], Answer], threads: int, name: str) -> None:
        self._build, self._work = build, work
        self._jobs: queue.SimpleQueue[tuple[Call, concurrent.futures.Future[Answer]] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._loop, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Call) -> concurrent.futures.Future[Answer]:
        """The future answer; it has the exception that the worker raised."""
        answer: concurrent.futures.Future[Answer] = concurrent.futures.Future()
        self._jobs.put((call, answer))
        return answer

    async def run(self, call: Call) -> Answer:
        """The answer to a call. Raises what the worker raised."""
        return await asyncio.wrap_future(self.submit(call))

    def close(self, *, wait: bool = True) -> None:
        """Let the threads end after the calls that wait, and close their workers.

        Args:
            wait: return after the last thread has ended.
        """
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _loop(self) -> None:
        worker: W | None = None
        try:
            while (job := self._jobs.get()) is not None:
                call, answer = job
                if not answer.set_running_or_notify_cancel():
                    continue
                try:
                    worker = worker or self._build()
                    result = self._work(worker, call)
                except BaseException as error:  # also of code that calls sys.exit()
                    answer.set_exception(error)
                else:
                    answer.set_result(result)
        finally:
            if worker is not None:
                worker.close()
