"""Which servers are in service: a state machine per server, and one decision for all ranks.

::

    joining -> warming -> active <-> suspect -> out -> joining

A server is a member by its incarnation, not by its address: a restarted server is another member. It gets requests only
while it is active, and becomes active only with the current weights. ``Membership`` is pure: events and the time come
from outside, so every order of events can be tested.
"""

from __future__ import annotations

from collections.abc import Mapping
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
        self._is_publishing = False
        self._n_publications = 0
        # Warmed up apart from publications since the last decision.
        self._warmed: dict[str, None] = {}

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
        """The servers that get requests, by incarnation: those of the decision, and newcomers that were warmed up apart
        from publications since."""
        names = {**dict.fromkeys(self._decision.members), **self._warmed}
        members = {name: self._members[name] for name in names if name in self._members}
        return {name: member.record for name, member in members.items() if member.state == "active"}

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
        return {name: m.record for name, m in self._members.items() if self._takes_part(m)}

    def publishing(self) -> None:
        """A publication begins; it ends with ``committed``."""
        self._is_publishing = True
        self._n_publications += 1

    def begin_warm_ups(self, version: int, now: float) -> dict[str, ServerRecord]:
        """The newcomers to warm up with ``version`` apart from publications. None during a publication, in which they
        take part, or if servers have another version."""
        if self._is_publishing or version != self._version:
            return {}
        chosen = {name: record for name, record in self.waiting(now).items() if not self._members[name].waits}
        for name in chosen:
            self._enter(name, "warming", now)
            self._members[name] = replace(self._members[name], apart=True)
        return chosen

    @property
    def n_publications(self) -> int:
        """Number of publications that have begun."""
        return self._n_publications

    def warmed(
        self, name: str, version: int, error: str, now: float, *, confirmed: bool = True, n_publications: int
    ) -> None:
        """A warm-up apart from publications has ended.

        Args:
            name: the server.
            version: that it got.
            error: why it must not get requests; empty if it may.
            now: the time.
            confirmed: false if the error says nothing against the server. It then joins with the next publication.
            n_publications: when the warm-up began. If one began since, the server has outdated weights, and may have
                failed because of it.
        """
        member = self._members.get(name)
        if member is None or not member.apart:
            return
        if not confirmed or n_publications != self._n_publications or version != self._version:
            self._enter(name, "joining", now)
            self._members[name] = replace(self._members[name], waits=True)
        elif error:
            self._leave(name, error, now)
        else:
            self._set_version(name, version)
            self._join(name, now)
            self._warmed[name] = None

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

    def rested(self, now: float) -> None:
        """Let suspects get requests again, in a pool without probes. Their failures still count, until the next
        publication."""
        for name, member in list(self._members.items()):
            if member.state == "suspect":
                self._enter(name, "active", now, failures=member.failures)

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
        self._version, self._is_publishing = version, False
        for name, member in list(self._members.items()):
            if not self._takes_part(member):
                if member.drains and outcomes.get(name):
                    self.failed(name, outcomes[name], now)
                continue  # also a receiver that left during the publication
            if outcomes.get(name) != "":
                self._leave(name, outcomes.get(name) or f"it took no part in the publication of {version}", now)
                continue
            self._set_version(name, version)
            if member.state == "warming":
                self._join(name, now)
            else:
                self._enter(name, "active", now)  # a suspect, too: it has just taken weights and completed the canary

    def decide(self, now: float) -> TopologyDecision:
        """The servers of the next step. Call once per step, changed or not."""
        self._warmed.clear()
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

    def _takes_part(self, member: Member) -> bool:
        """Whether a server is one of the receivers of a publication."""
        return member.state in IN_SERVICE or (member.state == "warming" and not member.apart)

    def _join(self, name: str, now: float) -> None:
        self._enter(name, "active", now)
        self._members[name] = replace(self._members[name], refusals=0, refused="", waits=False)

    def _state(self, name: str) -> State | None:
        member = self._members.get(name)
        return None if member is None else member.state

    def _enter(self, name: str, state: State, now: float, *, failures: int = 0, reason: str = "") -> None:
        member = self._members[name]
        since = member.since if member.state == state else now
        drains = member.drains and state in ("joining", "warming")
        changed = replace(member, state=state, since=since, failures=failures, reason=reason, drains=drains)
        self._members[name] = replace(changed, apart=False)

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
        self._members[name] = replace(left, waits=False)

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
