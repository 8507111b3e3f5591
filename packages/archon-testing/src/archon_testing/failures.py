"""Failures of a world, ordered so that the root cause comes first.

When one rank dies, its peers fail moments later with errors about lost connections, which may arrive first. So lost
connections are ordered last, whatever their time.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from archon_core.errors import ArchonError


@dataclass(frozen=True)
class RankFailure:
    """The end of a rank without a result.

    Attributes:
        rank: the rank.
        cause: exception, signal, exit, or time limit.
        summary: one line: the exception, the signal, the exit code.
        details: traceback, or the stacks of a hung rank; may be empty.
        output: the end of its output.
        lost_connection: whether it failed because another rank was gone or silent.
        time: when the parent noticed, in seconds since the epoch.
    """

    rank: int
    cause: Literal["exception", "signal", "exit", "hang"]
    summary: str
    details: str = ""
    output: str = ""
    lost_connection: bool = False
    time: float = field(default_factory=time.time)


class WorldError(ArchonError):
    """A world whose ranks did not all return.

    Attributes:
        failures: of the failed ranks, the root cause first.
    """

    def __init__(self, message: str, failures: Sequence[RankFailure]) -> None:
        super().__init__(message)
        self.failures = tuple(failures)

    @property
    def first(self) -> RankFailure:
        """The root cause."""
        return self.failures[0]


def order_by_cause(failures: Iterable[RankFailure]) -> list[RankFailure]:
    """Sorted by time, with lost connections last."""
    return sorted(failures, key=lambda failure: (failure.lost_connection, failure.time, failure.rank))


def describe_exit(code: int) -> tuple[Literal["signal", "exit"], str]:
    """Cause and summary for a process that ended without a message."""
    if code >= 0:
        return "exit", f"exited with code {code} before it returned"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (the system does that when memory runs out)" if name == "SIGKILL" else ""
    return "signal", f"killed by {name}{hint}"


def failed_world(n_ranks: int, failures: Iterable[RankFailure]) -> WorldError:
    """The error for a world in which ranks failed."""
    ordered = order_by_cause(failures)
    first, *others = ordered
    lines = [f"world of {n_ranks} ranks: rank {first.rank} failed first: {first.summary}", *_sections(first)]
    lines += [f"then rank {failure.rank}: {failure.summary}" for failure in others]
    return WorldError("\n".join(lines), ordered)


def hung_world(n_ranks: int, seconds: float, hung: Iterable[RankFailure]) -> WorldError:
    """The error for a world that passed its time limit."""
    failures = sorted(hung, key=lambda failure: failure.rank)
    ranks = ", ".join(str(failure.rank) for failure in failures)
    lines = [
        f"world of {n_ranks} ranks: no result within {seconds:g} s from rank{'s' * (len(failures) > 1)} {ranks}; "
        "their stacks show where they wait; raise time_limit if they only need more time"
    ]
    for failure in failures:
        lines += _sections(failure)
    return WorldError("\n".join(lines), failures)


def _sections(failure: RankFailure) -> list[str]:
    kind = "stack" if failure.cause == "hang" else "traceback"
    parts = ((kind, failure.details), ("end of its output", failure.output))
    return [f"--- rank {failure.rank}: {title}\n{text.rstrip()}" for title, text in parts if text.strip()]
