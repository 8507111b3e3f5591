"""A server that cannot join, such as one of another architecture, tries less and less often, and one can see why."""

from __future__ import annotations

from archon_core.serving.record import ServerRecord
from archon_rollout.pool.members import MembershipRules, PoolStatus
from archon_rollout.pool.membership import Membership
from archon_rollout.pool.status_file import StatusFile, read_status

RULES = MembershipRules(cooldown=0.0, retry=10.0, longest_retry=100.0)
REASON = "prepare: answered 409: found the architecture of another model"
RECORDS = {name: ServerRecord(f"127.0.0.1:800{n}", name, "served") for n, name in enumerate("ax")}


def joined(*names: str) -> Membership:
    membership = Membership(RULES)
    membership.announced({name: RECORDS[name] for name in names}, 0.0)
    membership.receivers(0.0)
    membership.committed(0, dict.fromkeys(names, ""), 0.0)
    membership.decide(0.0)
    return membership


def attempts(membership: Membership, until: int, reason: str = REASON, start: int = 0) -> list[int]:
    """Seconds at which ``x`` takes part in a publication; one is made in every second."""
    found = []
    for now in range(start, until):
        membership.announced(RECORDS, float(now))
        if "x" in membership.receivers(float(now)):
            found.append(now)
        outcomes = dict.fromkeys(membership.receivers(float(now)), "")
        membership.committed(now, {**outcomes, "x": reason} if "x" in outcomes else outcomes, float(now))
        membership.decide(float(now))
    return found


def test_the_time_between_attempts_to_join_doubles_up_to_a_limit() -> None:
    assert attempts(joined("a"), 500) == [0, 10, 30, 70, 150, 250, 350, 450]


def test_the_doubled_time_is_forgotten_when_the_server_has_joined() -> None:
    membership = joined("a")
    assert attempts(membership, 71) == [0, 10, 30, 70]
    attempts(membership, 160, reason="", start=71)
    member = membership.members["x"]
    assert (member.state, member.refusals, member.refused) == ("active", 0, "")
    membership.failed("x", "connection refused", 160.0)
    assert membership.members["x"].retry_at == 170.0


def test_a_restarted_server_may_join_at_once() -> None:
    membership = joined("a")
    attempts(membership, 71)
    again = ServerRecord(RECORDS["x"].address, "y", "served")
    membership.announced({"a": RECORDS["a"], "y": again}, 72.0)
    assert list(membership.waiting(72.0)) == ["y"]


def test_without_any_other_server_no_attempt_is_put_off_longer() -> None:
    membership = joined("a")
    attempts(membership, 71)
    membership.failed("a", "connection refused", 75.0)
    membership.announced(RECORDS, 79.0)
    assert membership.members["x"].state == "out"
    membership.announced(RECORDS, 80.0)
    assert membership.members["x"].state == "joining"


def test_a_retry_above_the_limit_is_not_shortened_and_many_refusals_do_not_overflow() -> None:
    rules = MembershipRules(retry=5000.0, longest_retry=100.0)
    assert [rules.pause_after(n) for n in (0, 1, 2, 100_000)] == [5000.0] * 4
    assert [RULES.pause_after(n) for n in (0, 1, 2, 3, 100_000)] == [10.0, 10.0, 20.0, 40.0, 100.0]


def test_the_status_says_why_a_server_is_out_and_when_it_may_join_also_while_it_tries_again(tmp_path) -> None:
    membership = joined("a")
    attempts(membership, 11)

    def status(now: float):
        status = PoolStatus(membership.members, membership.decide(now), "", {})
        StatusFile(tmp_path, 1.0, clock=lambda: now).write(status)
        return {one.incarnation: one for one in read_status(tmp_path).members}

    found = status(18.0)["x"]
    assert (found.state, found.reason, found.refusals, found.retry_seconds) == ("out", REASON, 2, 12.0)
    membership.announced(RECORDS, 30.0)
    found = status(30.0)["x"]
    assert (found.state, found.reason, found.refusals, found.retry_seconds) == ("joining", "", 2, None)
    assert found.refused == REASON
    assert (status(30.0)["a"].refusals, status(30.0)["a"].retry_seconds) == (0, None)
