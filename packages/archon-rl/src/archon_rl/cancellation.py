"""Tells the cancellation of a task from a ``CancelledError`` that the task's code raises by itself.

Code that awaits a task which it has cancelled raises ``CancelledError``. If nobody cancelled the awaiting task, the
error is a failure of that code, like any other exception.
"""

from __future__ import annotations

import asyncio


def is_cancellation(error: BaseException) -> bool:
    """Whether ``error`` is a ``CancelledError`` because somebody cancelled the current task, such as a time limit."""
    if not isinstance(error, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
