"""Finds and explains the rank that failed first, for launchers. Pure functions of how the ranks ended.

When one rank dies, the others lose their connections and fail within milliseconds. A launcher that reports the first
failure it sees often reports one of those.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from archon_core.ranks.error_file import RankError

_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass(frozen=True)
class RankExit:
    """The end of a rank's process.

    Attributes:
        rank: the rank.
        pid: process id.
        code: exit code; the negative signal number if a signal ended it.
        time: when the launcher noticed, in seconds since the epoch.
        error: from its error file, if it wrote one.
        log: file with its output; ``None`` if that went to the terminal.
        host: its machine; empty for this one.
        cause: why it was lost, if it did not end by itself: its machine or its job is gone.
        role: whose rank it is, if roles have their own ranks.
    """

    rank: int
    pid: int
    code: int
    time: float
    error: RankError | None = None
    log: Path | None = None
    host: str = ""
    cause: str = ""
    role: str = ""

    @property
    def failed(self) -> bool:
        """Whether it ended neither successfully nor by a requested stop."""
        return self.code != 0 and self.code not in _STOPPED


def first_to_fail(exits: Sequence[RankExit]) -> RankExit | None:
    """The rank that failed first; ``None`` if no rank failed.

    In order of precedence: ranks killed by a signal, which leave no error; ranks that raised an error; ranks that
    relayed another rank's error; aborted ranks, and those whose machine or job was lost; stopped ranks; ranks that lost
    a connection. Among equals, the earliest.
    """
    ended = [exit for exit in exits if exit.code != 0]
    return min(ended, key=lambda exit: (_order(exit), exit.error.time if exit.error else exit.time), default=None)


def _order(exit: RankExit) -> int:
    if exit.error is not None:
        return {"told": 2, "connection": 5}.get(exit.error.kind, 1)
    if exit.cause:
        return 3
    if exit.code in _STOPPED:
        return 4
    # NCCL's watchdog aborts a rank whose peers are gone. SIGINT and SIGTERM reach all ranks.
    return {-signal.SIGABRT: 3, -signal.SIGINT: 4, -signal.SIGTERM: 4}.get(exit.code, 0 if exit.code < 0 else 1)


def is_worth_another_try(first: RankExit) -> bool:
    """Whether a restart may succeed after this failure: not after a user error."""
    return first.error is None or first.error.kind != "user"


def shared_error(exits: Sequence[RankExit], n_ranks: int) -> RankError | None:
    """The user error that all ranks raised, if they all raised the same."""
    errors = [exit.error for exit in exits if exit.error is not None and exit.error.kind == "user"]
    alike = len(errors) == n_ranks and len({(error.name, error.message) for error in errors}) == 1
    return errors[0] if alike else None


def explain(exit: RankExit, n_ranks: int) -> str:
    """The final message: which rank failed first, why, and where its output is."""
    place = f"its output is in {exit.log}" if exit.log else "its output is above"
    process = f"process {exit.pid}" if exit.pid else "no process yet"
    role = f"{exit.role}, " if exit.role else ""
    who = f"rank {exit.rank} of {n_ranks} ({role}{process}{f' on {exit.host}' if exit.host else ''})"
    if exit.error is not None:
        named = exit.error.kind in ("error", "connection")
        why = f"{exit.error.name}: {exit.error.message}" if named else exit.error.message
        how = {"connection": "lost a connection, and no rank reported a cause", "told": "relayed this error"}
        return f"{why}\n{who} {how.get(exit.error.kind, 'failed first')}; {place}"
    if exit.cause:
        return f"{who} was lost first: {exit.cause}; {place}"
    if exit.code < 0:
        return f"{who} was killed first, by {_signal_name(-exit.code)}{_likely_cause(-exit.code)}; {place}"
    return f"{who} failed first, with exit code {exit.code} and no error message; {place}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


def _likely_cause(number: int) -> str:
    if number == signal.SIGKILL:
        return (
            ". Unless someone sent the signal, the kernel ran out of memory (see `dmesg` or the container's log): use "
            "smaller micro-batches (actor.mb_spec.max_tokens_per_mb), or more ranks"
        )
    return ""
