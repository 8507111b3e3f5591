"""Which rank failed first, and how to say so. Pure functions over what the ranks left.

When one rank dies, the others lose their connections to it and fail within milliseconds; a launcher that names the
first failure it sees often names one of those.
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
    """How a rank ended.

    Attributes:
        rank: which one.
        pid: its process.
        code: exit code; minus the signal's number when a signal ended it.
        time: when that was seen, in seconds since 1970.
        error: what it left, if anything.
        log: the file that holds its output; ``None`` when that went to the terminal.
    """

    rank: int
    pid: int
    code: int
    time: float
    error: RankError | None = None
    log: Path | None = None

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than by success or by the stop that the ranks agreed upon."""
        return self.code != 0 and self.code not in _STOPPED


def first_to_fail(exits: Sequence[RankExit]) -> RankExit | None:
    """The rank on which the run failed, or ``None`` when none ended with an error.

    First come ranks that a signal killed, since they tell nothing themselves, then those with an error of their own,
    then those that were told of it, those that gave up, and last those that lost a connection; among equals the
    earliest.
    """
    ended = [exit for exit in exits if exit.code != 0]
    return min(ended, key=lambda exit: (_order(exit), exit.error.time if exit.error else exit.time), default=None)


def _order(exit: RankExit) -> int:
    if exit.error is not None:
        return {"told": 2, "connection": 5}.get(exit.error.kind, 1)
    if exit.code in _STOPPED:
        return 4
    # NCCL's watchdog aborts a rank whose peers are gone; and SIGINT and SIGTERM reach all of them.
    return {-signal.SIGABRT: 3, -signal.SIGINT: 4, -signal.SIGTERM: 4}.get(exit.code, 0 if exit.code < 0 else 1)


def is_worth_another_try(first: RankExit) -> bool:
    """Whether a run that failed on this rank may do better when it is started again: not after a user's mistake."""
    return first.error is None or first.error.kind != "user"


def shared_error(exits: Sequence[RankExit], n_ranks: int) -> RankError | None:
    """The user's error that all ranks raised alike, if they did."""
    errors = [exit.error for exit in exits if exit.error is not None and exit.error.kind == "user"]
    alike = len(errors) == n_ranks and len({(error.name, error.message) for error in errors}) == 1
    return errors[0] if alike else None


def explain(exit: RankExit, n_ranks: int) -> str:
    """What a user reads last: which rank failed first, why, and where to read more."""
    place = f"its output is in {exit.log}" if exit.log else "its output is above"
    who = f"rank {exit.rank} of {n_ranks} (process {exit.pid})"
    if exit.error is not None:
        named = exit.error.kind in ("error", "connection")
        why = f"{exit.error.name}: {exit.error.message}" if named else exit.error.message
        how = {"connection": "lost a connection, and no rank says why", "told": "was told so"}
        return f"{why}\n{who} {how.get(exit.error.kind, 'failed first')}; {place}"
    if exit.code < 0:
        return f"{who} was killed first, by {_signal_name(-exit.code)}{_likely_cause(-exit.code)}; {place}"
    return f"{who} failed first: it ended with exit code {exit.code} and left no message; {place}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


def _likely_cause(number: int) -> str:
    if number == signal.SIGKILL:
        return (
            ". Unless someone sent it, this was the kernel running out of memory (`dmesg` or the container's log says "
            "so): take smaller micro-batches (actor.mb_spec.max_tokens_per_mb), or more ranks"
        )
    return ""
