"""What the pool knows of servers: states, members, the rules by which they change, and the decision of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from archon_core.serving.record import ServerRecord

State = Literal["joining", "warming", "active", "suspect", "out"]
"""``joining``: announced. ``warming``: gets weights, in a publication or apart, and the canary. ``active``: in service.
``suspect``: a probe or request failed; no new requests. ``out``: no requests and no weights."""

MAX_DOUBLINGS = 30

IN_SERVICE: tuple[State, ...] = ("active", "suspect")
"""States of servers that have the current weights."""


@dataclass(frozen=True)
class Member:
    """One server.

    Attributes:
        record: as announced; ``version`` is that of the last weights which the server has confirmed.
        state: its state.
        since: time at which it entered the state.
        failures: consecutive failed probes, and failed requests since the last probe or publication that it passed.
        reason: why it is suspect or out; empty otherwise.
        announced: whether the registry lists it.
        drains: whether it left only by withdrawing, so it may still answer the requests that it has.
        refusals: consecutive attempts to join that failed, such as those of a server of another architecture.
        refused: why the last one failed; empty after none.
        retry_at: time at which it may join again, if it is out and another server is in service.
        apart: whether it is warming apart from publications.
        waits: whether it joins with a publication only, because a warm-up apart from them led to nothing.
    """

    record: ServerRecord
    state: State
    since: float
    failures: int = 0
    reason: str = ""
    announced: bool = True
    drains: bool = False
    refusals: int = 0
    refused: str = ""
    retry_at: float = 0.0
    apart: bool = False
    waits: bool = False


@dataclass(frozen=True)
class TopologyDecision:
    """The servers of one step. Rank 0 decides and broadcasts, so that all ranks enter the same collectives.

    Attributes:
        epoch: rises by 1 with every change; names the process groups of the weight transport.
        members: the servers in service, by incarnation, in the order in which they were first announced.
        evicted: incarnations that left since the previous decision.
        joined: incarnations that are new since the previous decision.
        reason: of the changes, for the log; empty without a change.
    """

    epoch: int
    members: Mapping[str, ServerRecord] = field(default_factory=dict)
    evicted: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    reason: str = ""

    @property
    def changed(self) -> bool:
        """Whether the members differ from those of the previous decision."""
        return bool(self.evicted or self.joined)


@dataclass(frozen=True)
class MembershipRules:
    """When servers leave and join.

    Attributes:
        failure_threshold: consecutive failed probes after which a server is out.
        cooldown: seconds after a change of the topology during which no server joins. Servers leave at once: a transfer
            to a dead server would only fail.
        retry: seconds after which a server that is out, but still announced, may join again. They double with each
            further attempt that fails, unless no server is in service.
        longest_retry: limit of the doubled seconds, if ``retry`` is not longer.
    """

    failure_threshold: int = 3
    cooldown: float = 30.0
    retry: float = 30.0
    longest_retry: float = 1800.0

    def pause_after(self, refusals: int) -> float:
        """Seconds after which a server may join again of which so many attempts have failed in a row."""
        doubled = self.retry * 2.0 ** min(max(refusals - 1, 0), MAX_DOUBLINGS)
        return max(self.retry, min(doubled, self.longest_retry))


@dataclass(frozen=True)
class PoolStatus:
    """What the pool knows, for ``archon servers`` and messages.

    Attributes:
        members: every known server, by incarnation.
        decision: the last decision.
        registry_error: why the registry could not be read last time; empty if it could.
        outstanding: outstanding tokens per incarnation.
        version: of the weights in service.
    """

    members: Mapping[str, Member]
    decision: TopologyDecision
    registry_error: str
    outstanding: Mapping[str, int]
    version: int = 0
