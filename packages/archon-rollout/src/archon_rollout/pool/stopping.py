"""Ends waits for servers when the user stops the run.

The first rank waits, so it notices; ``failing_together`` passes ``StoppedError`` to the others, and all leave together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from archon_core.errors import ArchonError

Stop = Callable[[], bool]
"""Returns whether the user has asked the run to stop."""


class StoppedError(ArchonError):
    """The user stopped the run while it waited for servers."""


def never() -> bool:
    """For runs that nobody stops."""
    return False


@contextmanager
def interrupting() -> Iterator[None]:
    """Turn ``StoppedError`` into KeyboardInterrupt, with which all trainers end a run that was stopped."""
    try:
        yield
    except StoppedError as error:
        raise KeyboardInterrupt(str(error)) from error
