"""Which servers are in service: a state machine per server, and one decision for all ranks.

::

    joining -> warming -> active <-> suspect -> out -> joining

A server is a member by its incarnation, not by its address: a restarted server is another member. It gets requests only
while it is active, and becomes active only with the current weights. ``Membership`` is pure: events and the time come
from outside, so every order of events can be tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from archon_core.serving.record import ServerRecord
from archon_rollout.pool.members import IN_SERVICE, Member, MembershipRules, State, TopologyDecision


class Membership:
    """The states of all servers.

    Args:
        rules: when servers leave and join.
    """

    def __init__(self, rules: MembershipRules) -> None:
        self._rules = rules
        self._members: dict[str, Member] = {}
        self._version = 0
        self._decision = TopologyDecision(0)
        self._departures: dict[str, str] = {}
        self._last_change: float | None = None
        self._distrusted_round = False

    @property
    def version(self) -> int:
        """The current version of the weights."""
        return self._version

    @property
    def members(self) -> Mapping[str, Member]:
        """Every known server, by incarnation, in the order in which they were announced."""
        return self._members

    @property
    def last_change(self) -> float | None:
        """Time of the last decision that changed the members; ``None`` before the first."""
        return self._last_change

    def active(self) -> dict[str, ServerRecord]:
        """The servers that get requests, by incarnation."""
        return {name: member.record for name, member in self._decided() if member.state == "active"}

    def in_service(self) -> dict[str, ServerRecord]:
        """The servers that have the current weights, by incarnation."""
        return {name: member.record for name, member in self._members.items() if member.state in IN_SERVICE}

    def waiting(self, now: float) -> dict[str, ServerRecord]:
        """The servers that may join now. None during the cooldown, unless no other server is left."""
        cools_down = self._last_change is not None and now < self._last_change + self._rules.cooldown
        if cools_down and self.in_service():
            return {}
        return {name: member.record for name, member in self._members.items() if member.state == "joining"}

    def announced(self, records: Mapping[str, ServerRecord], now: float) -> None:
        """Take over the registry's list.

        Args:
            records: all servers that the registry lists, by incarnation.
            now: the time.
        """
        for name, member in list(self._members.items()):
            if name in records or not member.announced:
                continue
            self._members[name] = replace(member, announced=False)
            self._leave(name, self._why_unlisted(member, records), now, drains=not self._is_restarted(member, records))
        for name, record in records.items():
            member = self._members.get(name)
            if member is None:
                self._members[name] = Member(record, "joining", now)
                continue
            self._members[name] = replace(member, announced=True)
            if member.state == "out" and now >= self.retry_at(member):
                self._enter(name, "joining", now)

    def retry_at(self, member: Member) -> float:
        """Time at which a server that is out may join again: without any other server, no attempt is put off longer."""
        return member.retry_at if self.in_service() else member.since + self._rules.retry

    def receivers(self, now: float) -> dict[str, ServerRecord]:
        """The servers of the next publication: those in service and those that may join, which are warming then."""
        for name in self.waiting(now):
            self._enter(name, "warming", now)
        return {name: m.record for name, m in self._members.items() if m.state in (*IN_SERVICE, "warming")}

    def failed(self, name: str, reason: str, now: float) -> None:
        """A server failed a call that cannot be repeated: it is out at once, and answers no request any more."""
        self._leave(name, reason, now)
        member = self._members.get(name)
        if member is not None and member.drains:
            self._members[name] = replace(member, drains=False, reason=reason)

    def departure(self, name: str) -> str:
        """Why the requests that a server has should go to others; empty while it may answer them."""
        member = self._members.get(name)
        if member is None:
            return "it left"
        if member.state in IN_SERVICE or member.drains:
            return ""
        return member.reason or f"it is {member.state}"

    def probed(self, results: Mapping[str, str], now: float) -> None:
        """Take over one round of probes.

        If most of three or more servers fail in one round, the fault is more likely on this side, so the first such
        round does not count.

        Args:
            results: incarnation -> error; empty for a server that answered.
            now: the time.
        """
        results = {name: error for name, error in results.items() if self._state(name) in IN_SERVICE}
        n_failed = sum(bool(error) for error in results.values())
        distrust = len(results) >= 3 and 2 * n_failed > len(results) and not self._distrusted_round
        self._distrusted_round = distrust
        if distrust:
            return
        for name, error in results.items():
            if error:
                self._count_failure(name, error, now)
            elif self._state(name) == "suspect":
                self._enter(name, "active", now)

    def request_failed(self, name: str, error: str, now: float) -> None:
        """A request failed. It counts like a failed probe, but says nothing about a round of probes."""
        if self._state(name) in IN_SERVICE:
            self._count_failure(name, error, now)

    def committed(self, version: int, outcomes: Mapping[str, str], now: float) -> None:
        """A publication has ended.

        Args:
            version: of the weights.
            outcomes: incarnation -> error, of the receivers; empty for a server that confirmed the version and passed
                the canary.
            now: the time.
        """
        self._version = version
        for name, member in list(self._members.items()):
            if member.state not in (*IN_SERVICE, "warming"):
                if member.drains and outcomes.get(name):
                    self.failed(name, outcomes[name], now)
                continue  # also a receiver that left during the publication
            if outcomes.get(name) != "":
                self._leave(name, outcomes.get(name) or f"it took no part in the publication of {version}", now)
                continue
            self._set_version(name, version)
            if member.state == "warming":
                self._enter(name, "active", now)
                self._members[name] = replace(self._members[name], refusals=0, refused="")

    def decide(self, now: float) -> TopologyDecision:
        """The servers of the next step. Call once per step, changed or not."""
        before = self._decision.members
        members = self.in_service()
        evicted = tuple(name for name in before if name not in members)
        joined = tuple(name for name in members if name not in before)
        if not (evicted or joined):
            self._decision = TopologyDecision(self._decision.epoch, members)
            return self._decision
        reasons = [f"{before[name].address} left: {self._departures.get(name, 'unknown')}" for name in evicted]
        reasons += [f"{members[name].address} joined" for name in joined]
        self._decision = TopologyDecision(self._decision.epoch + 1, members, evicted, joined, "; ".join(reasons))
        self._last_change = now
        self._forget(now)
        return self._decision

    def departures(self) -> list[str]:
        """Address and reason of every server that is out, for the error of a run without servers."""
        return [f"{m.record.address}: {m.reason}" for m in self._members.values() if m.state == "out"]

    def _decided(self) -> Iterator[tuple[str, Member]]:
        """Members that are in the current decision."""
        return ((name, self._members[name]) for name in self._decision.members if name in self._members)

    def _state(self, name: str) -> State | None:
        member = self._members.get(name)
        return None if member is None else member.state

    def _enter(self, name: str, state: State, now: float, *, failures: int = 0, reason: str = "") -> None:
        member = self._members[name]
        since = member.since if member.state == state else now
        drains = member.drains and state in ("joining", "warming")
        self._members[name] = replace(member, state=state, since=since, failures=failures, reason=reason, drains=drains)

    def _leave(self, name: str, reason: str, now: float, *, drains: bool = False) -> None:
        if self._state(name) in (None, "out"):
            return
        member = self._members[name]
        drains = drains and member.state in IN_SERVICE
        refusals, refused = (member.refusals + 1, reason) if member.state == "warming" else (0, "")
        self._departures[name] = reason
        self._enter(name, "out", now, reason=reason)
        retry_at = now + self._rules.pause_after(refusals)
        left = replace(self._members[name], drains=drains, refusals=refusals, refused=refused, retry_at=retry_at)
        self._members[name] = left

    def _count_failure(self, name: str, error: str, now: float) -> None:
        """Make a server in service suspect, or put it out after too many failures."""
        failures = self._members[name].failures + 1
        if failures >= self._rules.failure_threshold:
            self._leave(name, f"{failures} probes failed; the last one: {error}", now)
        else:
            self._enter(name, "suspect", now, failures=failures, reason=error)

    def _set_version(self, name: str, version: int) -> None:
        member = self._members[name]
        self._members[name] = replace(member, record=replace(member.record, version=version))

    def _why_unlisted(self, member: Member, records: Mapping[str, ServerRecord]) -> str:
        if self._is_restarted(member, records):
            return "it was restarted: another incarnation has its address"
        return "it withdrew from the registry, or its entry expired"

    def _is_restarted(self, member: Member, records: Mapping[str, ServerRecord]) -> bool:
        return any(record.address == member.record.address for record in records.values())

    def _forget(self, now: float) -> None:
        """Drop servers that the registry no longer lists, once their departure has been reported for a while."""
        for name, member in list(self._members.items()):
            gone = member.state == "out" and not (member.announced or member.drains)
            if gone and now >= member.since + self._rules.retry:
                del self._members[name]
                self._departures.pop(name, None)
