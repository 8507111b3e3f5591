"""Ends waits for servers when the user stops the run.

The first rank waits, so it notices; ``failing_together`` passes ``StoppedError`` to the others, and all leave together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from archon_core.errors import ArchonError

T = TypeVar("T")

POLL_SECONDS = 0.05

Stop = Callable[[], bool]
"""Returns whether the user has asked the run to stop."""


class StoppedError(ArchonError):
    """The user stopped the run while it waited for servers."""


def never() -> bool:
    """For runs that nobody stops."""
    return False


def results_unless_stopped(calls: Sequence[Callable[[], T]], stop: Stop, *, doing: str) -> list[T]:
    """The results of calls to servers, all made at once, in their order.

    A call that hangs keeps its thread until its time limit, and the process does not wait for that.

    Args:
        calls: each has a time limit.
        stop: whether the user has asked the run to stop.
        doing: what the run does meanwhile, such as ``looked for servers``.

    Raises:
        StoppedError: the user stopped the run.
        Exception: the first one, in the order of the calls, that a call raises.
    """
    results: list[Future[T]] = [Future() for _ in calls]
    for call, result in zip(calls, results, strict=True):
        threading.Thread(target=_run, args=(call, result), name="archon-call", daemon=True).start()
    while not all(result.done() for result in results):
        if stop():
            raise StoppedError(f"stopped while the run {doing}")
        time.sleep(POLL_SECONDS)
    return [result.result() for result in results]


def _run(call: Callable[[], T], result: Future[T]) -> None:
    try:
        result.set_result(call())
    except BaseException as error:
        result.set_exception(error)


@contextmanager
def interrupting() -> Iterator[None]:
    """Turn ``StoppedError`` into KeyboardInterrupt, with which all trainers end a run that was stopped."""
    try:
        yield
    except StoppedError as error:
        raise KeyboardInterrupt(str(error)) from error
