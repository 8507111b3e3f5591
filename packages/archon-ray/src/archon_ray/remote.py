"""An actor as its caller sees it, without Ray: a call gives an answer that may come, fail, or never come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from archon_core.errors import ArchonError

POLL_SECONDS = 0.05


class RayError(ArchonError):
    """Ray refused a call, or does not answer."""


class LostError(ArchonError):
    """The actor has ended, or its machine is gone."""


class GivenUpError(ArchonError):
    """The caller did not wait for an answer."""


class Answer(Protocol):
    """The answer to a call."""

    def ready(self) -> bool:
        """Whether it is there, or an error is."""

    def result(self) -> Any:
        """The returned value. Raises LostError, or the ArchonError that the call raised."""


class RemoteMachine(Protocol):
    """A ``Machine`` elsewhere."""

    def ask(self, method: str, *arguments: Any) -> Answer:
        """Call a method. Returns at once."""


def wait_for(answers: Sequence[Answer], seconds: float, given_up: Callable[[], bool] = lambda: False) -> list[Any]:
    """The results of several calls.

    Args:
        answers: to the calls.
        seconds: time limit.
        given_up: whether the caller no longer wants to wait.

    Raises:
        GivenUpError: the caller has given up.
        LostError: an actor has ended, or has not answered for ``seconds``.
        ArchonError: a call raised it.
    """
    deadline = time.monotonic() + seconds
    while not all(answer.ready() for answer in answers):
        if given_up():
            raise GivenUpError("stopped while processes of Ray were starting")
        if time.monotonic() > deadline:
            raise LostError(f"has not answered for {seconds:g} s")
        time.sleep(POLL_SECONDS)
    return [answer.result() for answer in answers]
