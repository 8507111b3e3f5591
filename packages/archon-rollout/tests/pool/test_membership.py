"""The states of servers: every transition, and properties over random events."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from archon_core.serving.record import ServerRecord
from archon_rollout.pool.members import IN_SERVICE, MembershipRules
from archon_rollout.pool.membership import Membership

RULES = MembershipRules(failure_threshold=2, cooldown=10.0, retry=5.0)


def record(name: str, port: int = 0) -> ServerRecord:
    return ServerRecord(f"127.0.0.1:{port or 8000 + ord(name[0])}", name, "served")


def in_service(*names: str, version: int = 0) -> Membership:
    """Servers that have joined, at time 0."""
    membership = Membership(RULES)
    membership.announced({name: record(name) for name in names}, 0.0)
    publish(membership, version, 0.0)
    membership.decide(0.0)
    return membership


def publish(membership: Membership, version: int, now: float, **errors: str) -> list[str]:
    """A publication to all receivers."""
    receivers = list(membership.receivers(now))
    membership.committed(version, {name: errors.get(name, "") for name in receivers}, now)
    return receivers


def states(membership: Membership) -> dict[str, str]:
    return {name: member.state for name, member in membership.members.items()}


def test_a_server_joins_by_warming_up_and_gets_requests_after_the_next_decision() -> None:
    membership = Membership(RULES)
    membership.announced({"a": record("a")}, 1.0)
    assert states(membership) == {"a": "joining"}
    assert list(membership.waiting(1.0)) == ["a"]
    assert list(membership.receivers(1.0)) == ["a"]
    assert states(membership) == {"a": "warming"}
    assert not membership.waiting(1.0)
    membership.committed(0, {"a": ""}, 2.0)
    assert states(membership) == {"a": "active"}
    assert not membership.active()
    decision = membership.decide(3.0)
    assert (decision.epoch, decision.joined, list(decision.members)) == (1, ("a",), ["a"])
    assert list(membership.active()) == ["a"]
    assert membership.last_change == 3.0
    assert not membership.decide(4.0).changed
    assert membership.decide(5.0).epoch == 1


def test_a_newcomer_during_a_publication_waits_for_the_next_one() -> None:
    membership = in_service("a")
    receivers = list(membership.receivers(20.0))
    membership.announced({"a": record("a"), "b": record("b")}, 20.0)
    membership.committed(1, dict.fromkeys(receivers, ""), 21.0)
    assert states(membership) == {"a": "active", "b": "joining"}
    assert publish(membership, 2, 22.0, b="the canary differs") == ["a", "b"]
    assert states(membership) == {"a": "active", "b": "out"}


def test_a_server_that_leaves_during_a_publication_stays_out() -> None:
    membership = in_service("a", "b")
    receivers = list(membership.receivers(1.0))
    membership.failed("b", "connection refused", 1.0)
    membership.committed(1, dict.fromkeys(receivers, ""), 2.0)
    assert states(membership) == {"a": "active", "b": "out"}


def test_nobody_joins_during_the_cooldown_but_the_dead_leave_at_once() -> None:
    membership = in_service("a", "b")
    membership.announced({name: record(name) for name in "abc"}, 3.0)
    assert not membership.waiting(9.9)
    assert list(membership.waiting(10.0)) == ["c"]
    membership.failed("a", "connection refused", 4.0)
    decision = membership.decide(4.0)
    assert (decision.evicted, list(decision.members), decision.epoch) == (("a",), ["b"], 2)
    assert decision.reason == f"{record('a').address} left: connection refused"
    assert not membership.waiting(13.9)
    assert list(membership.waiting(14.0)) == ["c"]
    membership.failed("b", "connection refused", 5.0)
    assert list(membership.waiting(5.0)) == ["c"], "nobody else is left"


def test_failed_probes_make_a_server_suspect_and_then_put_it_out() -> None:
    membership = in_service("a", "b")
    membership.probed({"a": "no answer in 2 s", "b": ""}, 1.0)
    assert states(membership) == {"a": "suspect", "b": "active"}
    assert list(membership.active()) == ["b"]
    assert list(membership.decide(1.0).members) == ["a", "b"], "a suspect still gets weights"
    membership.probed({"a": "", "b": ""}, 2.0)
    assert states(membership) == {"a": "active", "b": "active"}
    for now in (3.0, 4.0):
        membership.probed({"a": "no answer in 2 s"}, now)
    assert states(membership)["a"] == "out"
    assert membership.members["a"].reason == "2 probes failed; the last one: no answer in 2 s"


def test_a_publication_that_a_suspect_passes_puts_it_into_service_again() -> None:
    membership = in_service("a")
    membership.request_failed("a", "out of memory", 1.0)
    assert publish(membership, 1, 2.0) == ["a"]
    assert (states(membership), membership.members["a"].failures) == ({"a": "active"}, 0)


def test_without_probes_a_suspect_rests_for_a_round_and_its_failures_still_count() -> None:
    membership = in_service("a")
    membership.request_failed("a", "out of memory", 1.0)
    assert not membership.active()
    membership.rested(2.0)
    assert list(membership.active()) == ["a"]
    membership.request_failed("a", "out of memory", 3.0)
    assert states(membership) == {"a": "out"}


def test_the_first_round_in_which_most_probes_fail_is_not_believed() -> None:
    membership = in_service("a", "b", "c")
    failing = dict.fromkeys("abc", "no answer in 2 s")
    membership.probed(failing, 1.0)
    assert set(states(membership).values()) == {"active"}
    membership.probed(failing, 2.0)
    membership.probed(failing, 3.0)
    assert set(states(membership).values()) == {"suspect"}, "rounds count by turns only"
    membership.probed(failing, 4.0)
    assert set(states(membership).values()) == {"out"}


def test_failed_requests_between_rounds_do_not_make_a_failing_round_the_first_one() -> None:
    membership = in_service("a", "b", "c", "d")
    for now in (1.0, 2.0):
        membership.probed(dict.fromkeys("abcd", "no answer in 2 s"), now)
        membership.request_failed("a", "connection refused", now)
    membership.request_failed("unknown", "connection refused", 2.0)
    assert states(membership) == {"a": "out", "b": "suspect", "c": "suspect", "d": "suspect"}


def test_whoever_takes_no_part_in_a_publication_is_out() -> None:
    membership = in_service("a", "b", "c")
    membership.committed(1, {"a": "", "b": "it has other values of 'head.weight'"}, 1.0)
    assert states(membership) == {"a": "active", "b": "out", "c": "out"}
    assert membership.members["a"].record.version == 1
    reason = membership.decide(1.0).reason
    assert "other values of 'head.weight'" in reason
    assert "took no part in the publication of 1" in reason


def test_a_restarted_server_on_the_same_port_is_another_member() -> None:
    membership = in_service("a")
    port = int(record("a").address.rpartition(":")[2])
    membership.announced({"x": record("x", port)}, 1.0)
    assert states(membership) == {"a": "out", "x": "joining"}
    assert "another incarnation has its address" in membership.decide(1.0).reason


def test_a_server_that_left_joins_again_if_it_still_announces_itself() -> None:
    membership = in_service("a")
    membership.failed("a", "canary", 1.0)
    membership.announced({"a": record("a")}, 5.9)
    assert states(membership) == {"a": "out"}
    membership.announced({"a": record("a")}, 6.0)
    assert states(membership) == {"a": "joining"}
    assert membership.members["a"].failures == 0


def test_a_server_that_withdrew_is_forgotten_when_it_has_ended_and_its_departure_was_reported() -> None:
    membership = in_service("a", "b", "c")
    membership.announced({"b": record("b"), "c": record("c")}, 1.0)
    assert "withdrew" in membership.decide(1.0).reason
    membership.failed("b", "refused", 7.0)
    membership.decide(7.0)
    assert membership.departure("a") == "", "it may still finish requests"
    membership.failed("a", "cannot connect", 8.0)
    assert membership.departure("a") == "cannot connect"
    membership.failed("c", "refused", 9.0)
    membership.decide(9.0)
    assert "a" not in membership.members
    assert membership.departure("a") == "it left"


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(("announce", "begin", "end", "failed", "probed", "request_failed", "rested", "decide")),
        st.sets(st.sampled_from("abcd")),
        st.sets(st.sampled_from("abcd")),
        st.floats(0, 8),
    ),
    max_size=60,
)


@settings(max_examples=200)
@given(EVENTS)
def test_random_events_never_put_outdated_or_absent_servers_into_service(events) -> None:
    membership, now, version, epoch = Membership(RULES), 0.0, 0, 0
    members: set[str] = set()
    receivers: list[str] = []
    for event, names, failing, pause in events:
        now += pause
        if event == "announce":
            membership.announced({name: record(name) for name in sorted(names)}, now)
        elif event == "begin":
            receivers = list(membership.receivers(now))
        elif event == "failed":
            for name in names & set(membership.members):
                membership.failed(name, "it failed", now)
        elif event == "probed":
            membership.probed({name: "late" if name in failing else "" for name in names}, now)
        elif event == "rested":
            membership.rested(now)
        elif event == "request_failed":
            for name in names:
                membership.request_failed(name, "late", now)
        elif event == "end":
            version += 1
            membership.committed(version, {name: "bits" if name in failing else "" for name in receivers}, now)
            receivers = []
        else:
            decision = membership.decide(now)
            assert decision.epoch == epoch + decision.changed
            assert set(decision.joined) == set(decision.members) - members
            assert set(decision.evicted) == members - set(decision.members)
            assert bool(decision.reason) == decision.changed
            epoch, members = decision.epoch, set(decision.members)
        for member in membership.members.values():
            if member.state in IN_SERVICE:
                assert member.record.version == version, "in service with other weights"
                assert member.announced, "in service without an entry"
            assert (member.state in ("suspect", "out")) == bool(member.reason)
        assert set(membership.active()) <= members, "requests go to servers of the decision only"
