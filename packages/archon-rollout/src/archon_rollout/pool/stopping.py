"""Ends waits for servers, registries and files when the run stops, or when they take too long.

The first rank waits, so it notices; ``failing_together`` passes ``StoppedError`` to the others, and all leave together.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from archon_core.errors import ArchonError

logger = logging.getLogger(__name__)

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
    results = [_started(call) for call in calls]
    while not all(result.done() for result in results):
        if stop():
            raise StoppedError(f"stopped while the run {doing}")
        time.sleep(POLL_SECONDS)
    return [result.result() for result in results]


async def in_thread(call: Callable[[], T]) -> T:
    """The result of a call in a daemon thread, as by ``asyncio.to_thread``. A call that hangs keeps neither the event
    loop nor the process from ending, as a thread of the loop's executor would."""
    return await asyncio.wrap_future(_started(call))


def try_within(seconds: float, call: Callable[[], object], *, doing: str) -> None:
    """Make a call, but wait for its end only so long. Logs if that does not suffice, or if the call fails.

    Args:
        seconds: time limit.
        call: continues in its thread until the process ends.
        doing: the call, for the log, such as ``closing the registry``.
    """
    try:
        _started(call).result(seconds)
    except TimeoutError:
        logger.warning("%s is not over after %g s; the run ends without it", doing, seconds)
    except Exception as error:
        logger.warning("%s failed: %s: %s", doing, type(error).__name__, error)


def _started(call: Callable[[], T]) -> Future[T]:
    """The result of a call that runs in a thread from now on."""
    result: Future[T] = Future()
    result.set_running_or_notify_cancel()  # whoever gives up waiting does not cancel it
    threading.Thread(target=_run, args=(call, result), name="archon-call", daemon=True).start()
    return result


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
