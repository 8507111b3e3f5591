"""The clocks of the ranks' hosts, against that of rank 0.

The offset is estimated as NTP does (RFC 5905, section 8): of several round trips, the shortest one tells most, and half
its time bounds the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from archon_core.cli.findings import Finding
from archon_core.cluster.naming import name_ranks

ROUND_TRIPS = 12

LIMIT_SECONDS = 1.0
"""Clocks that differ by more are a failure. NTP keeps them within milliseconds."""


@dataclass(frozen=True)
class RoundTrip:
    """A question to a rank for its time.

    Attributes:
        sent: when rank 0 asked, by its clock.
        answered: when the rank answered, by its own clock.
        received: when the answer arrived, by the clock of rank 0.
    """

    sent: float
    answered: float
    received: float


@dataclass(frozen=True)
class ClockOffset:
    """The clock of a rank.

    Attributes:
        seconds: ahead of that of rank 0; negative if it is behind.
        error: bound of the estimate's error, in seconds.
    """

    seconds: float = 0.0
    error: float = 0.0


def estimate_offset(round_trips: Sequence[RoundTrip]) -> ClockOffset:
    """The offset from the shortest round trip.

    >>> estimate_offset([RoundTrip(10.0, 15.5, 11.0), RoundTrip(20.0, 25.25, 20.5)])
    ClockOffset(seconds=5.0, error=0.25)
    """
    best = min(round_trips, key=lambda trip: trip.received - trip.sent)
    return ClockOffset(best.answered - (best.sent + best.received) / 2, (best.received - best.sent) / 2)


def measure_clocks(rank: int, size: int, clock: Callable[[], float]) -> list[ClockOffset]:
    """The clocks of all ranks, on rank 0; an empty list on the others. Collective over torch's default group."""
    if rank == 0:
        return [ClockOffset(), *(_ask(other, clock) for other in range(1, size))]
    _answer(clock)
    return []


def _ask(other: int, clock: Callable[[], float]) -> ClockOffset:
    import torch.distributed as dist

    message, trips = _message(), []
    for _ in range(ROUND_TRIPS):
        sent = clock()
        dist.send(message, other)
        dist.recv(message, other)
        trips.append(RoundTrip(sent, message.item(), clock()))
    return estimate_offset(trips)


def _answer(clock: Callable[[], float]) -> None:
    import torch.distributed as dist

    message = _message()
    for _ in range(ROUND_TRIPS):
        dist.recv(message, 0)
        message.fill_(clock())
        dist.send(message, 0)


def _message() -> Any:
    import torch

    return torch.zeros(1, dtype=torch.float64)  # on the CPU: gloo


def compare_clocks(offsets: Sequence[ClockOffset], hosts: Sequence[str]) -> Iterator[Finding]:
    """One finding per host whose clock differs from the others', or one line.

    With three or more ranks, clocks are compared with the median, so a wrong clock of rank 0 is named as such.
    """
    usual = sorted(offsets, key=lambda one: one.seconds)[(len(offsets) - 1) // 2] if len(offsets) > 2 else ClockOffset()
    apart = [ClockOffset(one.seconds - usual.seconds, one.error + usual.error) for one in offsets]
    odd: dict[str, list[int]] = {}
    for rank, offset in enumerate(apart):
        if abs(offset.seconds) - offset.error > LIMIT_SECONDS:
            odd.setdefault(hosts[rank], []).append(rank)
    for host, ranks in odd.items():
        worst = max((apart[rank] for rank in ranks), key=lambda one: abs(one.seconds))
        yield Finding(
            "clocks",
            "failure",
            f"{name_ranks(ranks, hosts)}: {abs(worst.seconds):.3f} s {'ahead of' if worst.seconds > 0 else 'behind'} "
            f"{'the others' if len(offsets) > 2 else 'rank 0'} (error at most {worst.error:.3f} s); "
            f"allowed are {LIMIT_SECONDS:g} s",
            f"on {host}: synchronise the clock, with chrony or another NTP client",
        )
    if not odd:
        spread = max(one.seconds for one in offsets) - min(one.seconds for one in offsets)
        error = max(one.error for one in offsets)
        yield Finding("clocks", "ok", f"within {1e3 * spread:.3f} ms of one another, measured to {1e3 * error:.3f} ms")
