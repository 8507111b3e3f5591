"""What went wrong in a world, told from the rank where it began.

When one rank dies, its peers fail moments later with errors about lost connections, and may be the first to be heard.
So what tells of a lost connection comes last, whatever its time.
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
    """How one rank ended without a result.

    Attributes:
        rank: which one.
        cause: it raised, was killed by a signal, exited, or was still running at the time limit.
        summary: one line: the exception, the signal, the exit code.
        details: traceback, or the stacks of a hung rank; may be empty.
        output: the end of what it printed.
        lost_connection: it failed because another rank was gone or silent.
        time: when that was seen, in seconds since 1970.
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
        failures: of the ranks that failed, the one where it began first.
    """

    def __init__(self, message: str, failures: Sequence[RankFailure]) -> None:
        super().__init__(message)
        self.failures = tuple(failures)

    @property
    def first(self) -> RankFailure:
        """Where it began."""
        return self.failures[0]


def in_order_of_blame(failures: Iterable[RankFailure]) -> list[RankFailure]:
    """By time, those that lost a connection after all others."""
    return sorted(failures, key=lambda failure: (failure.lost_connection, failure.time, failure.rank))


def describe_exit(code: int) -> tuple[Literal["signal", "exit"], str]:
    """Cause and summary for a process that ended by itself without a word."""
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
    ordered = in_order_of_blame(failures)
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
        "their stacks show where they wait; raise time_limit if they only need longer"
    ]
    for failure in failures:
        lines += _sections(failure)
    return WorldError("\n".join(lines), failures)


def _sections(failure: RankFailure) -> list[str]:
    kind = "stack" if failure.cause == "hang" else "traceback"
    parts = ((kind, failure.details), ("end of its output", failure.output))
    return [f"--- rank {failure.rank}: {title}\n{text.rstrip()}" for title, text in parts if text.strip()]
