"""Newcomers that are warmed up between publications: the states, and the pool that starts the warm-ups."""

from __future__ import annotations

import threading

from hypothesis import given, settings
from hypothesis import strategies as st
from test_pool import World

from archon_core.serving.record import ServerRecord
from archon_rollout.pool.members import IN_SERVICE, MembershipRules
from archon_rollout.pool.membership import Membership
from archon_rollout.pool.warming import start_warm_ups
from archon_rollout.publication.warm_up import WarmUp

RECORDS = {name: ServerRecord(f"127.0.0.1:800{n}", name, "served") for n, name in enumerate("abx")}
RULES = MembershipRules(cooldown=10.0, retry=5.0)


def with_newcomer() -> Membership:
    """``a`` and ``b`` at version 3, and ``x``, which may join after 10 s."""
    membership = Membership(RULES)
    membership.announced({name: RECORDS[name] for name in "ab"}, 0.0)
    publish(membership, 3, 0.0)
    membership.announced(RECORDS, 1.0)
    return membership


def publish(membership: Membership, version: int, now: float) -> list[str]:
    receivers = list(membership.receivers(now))
    membership.publishing()
    membership.committed(version, dict.fromkeys(receivers, ""), now)
    membership.decide(now)
    return receivers


def end(membership: Membership, error: str = "", *, version: int = 3, now: float = 12.0, began: int = 1, **options):
    membership.warmed("x", version, error, now, n_publications=began, **options)
    return membership.members["x"]


def test_a_newcomer_that_was_warmed_up_gets_requests_before_the_next_decision() -> None:
    membership = with_newcomer()
    assert membership.begin_warm_ups(3, 9.0) == {}, "the cooldown is not over"
    assert list(membership.begin_warm_ups(3, 11.0)) == ["x"]
    assert membership.begin_warm_ups(3, 11.0) == {}
    assert list(membership.active()) == ["a", "b"]
    assert end(membership).record.version == 3
    assert list(membership.active()) == ["a", "b", "x"]
    decision = membership.decide(13.0)
    assert (decision.joined, list(decision.members)) == (("x",), ["a", "b", "x"])
    assert membership.decide(14.0).joined == ()


def test_a_server_that_fails_its_warm_up_is_out_and_tries_again_later() -> None:
    membership = with_newcomer()
    membership.begin_warm_ups(3, 11.0)
    member = end(membership, "warm-up: it holds other values of 'norm'")
    assert (member.state, member.reason, member.refusals) == ("out", "warm-up: it holds other values of 'norm'", 1)
    assert list(membership.active()) == ["a", "b"]
    membership.announced(RECORDS, 17.0)
    assert list(membership.begin_warm_ups(3, 17.0)) == ["x"]


def test_a_publication_leaves_out_a_server_that_is_being_warmed_up_and_the_next_one_takes_it() -> None:
    membership = with_newcomer()
    membership.begin_warm_ups(3, 11.0)
    assert publish(membership, 4, 11.5) == ["a", "b"]
    assert end(membership).state == "joining", "it has version 3, and the others have 4"
    assert membership.begin_warm_ups(4, 12.0) == {}, "versions may come faster than warm-ups"
    assert publish(membership, 5, 12.5) == ["a", "b", "x"]
    assert list(membership.active()) == ["a", "b", "x"]


def test_an_error_of_an_overtaken_warm_up_says_nothing_against_the_server() -> None:
    membership = with_newcomer()
    membership.begin_warm_ups(3, 11.0)
    membership.receivers(11.5)
    membership.publishing()
    assert end(membership, "cannot read v3/model.safetensors").state == "joining"
    membership.committed(4, {"a": "", "b": ""}, 12.0)
    assert membership.members["x"].state == "joining"
    assert membership.members["x"].refusals == 0


def test_no_warm_up_begins_during_a_publication_or_with_another_version() -> None:
    membership = with_newcomer()
    assert membership.begin_warm_ups(2, 11.0) == {}
    membership.receivers(8.0)
    membership.publishing()
    assert membership.begin_warm_ups(3, 11.0) == {}
    membership.committed(3, {"a": "", "b": ""}, 11.0)
    assert list(membership.begin_warm_ups(3, 11.0)) == ["x"]


def test_what_only_the_trainer_can_confirm_waits_for_a_publication() -> None:
    membership = with_newcomer()
    membership.begin_warm_ups(3, 11.0)
    member = end(membership, "it completes the canary with other tokens", confirmed=False)
    assert (member.state, member.refusals) == ("joining", 0)
    assert membership.begin_warm_ups(3, 12.0) == {}
    assert publish(membership, 4, 13.0) == ["a", "b", "x"]


def test_a_server_that_leaves_during_its_warm_up_stays_out() -> None:
    membership = with_newcomer()
    membership.begin_warm_ups(3, 11.0)
    membership.announced({name: RECORDS[name] for name in "ab"}, 11.5)
    assert end(membership).state == "out"
    assert list(membership.active()) == ["a", "b"]


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(("announce", "begin", "end", "warm", "warmed", "failed", "decide")),
        st.sets(st.sampled_from("abx")),
        st.booleans(),
        st.floats(0, 8),
    ),
    max_size=60,
)


@settings(max_examples=150)
@given(EVENTS)
def test_random_events_never_put_a_server_with_other_weights_into_service(events) -> None:
    membership, now = Membership(RULES), 0.0
    held: dict[str, int] = {}
    receivers: list[str] | None = None
    warming: dict[str, tuple[int, int]] = {}
    version = 0
    for event, names, flag, pause in events:
        now += pause
        if event == "announce":
            membership.announced({name: RECORDS[name] for name in sorted(names)}, now)
        elif event == "begin" and receivers is None:
            receivers = list(membership.receivers(now))
            assert not warming.keys() & set(receivers), "a server has one update at a time"
            membership.publishing()
        elif event == "end" and receivers is not None:
            version += 1
            held |= dict.fromkeys(receivers, version)
            membership.committed(version, {name: "bits" if name in names else "" for name in receivers}, now)
            receivers = None
        elif event == "warm":
            for name in membership.begin_warm_ups(version, now):
                assert receivers is None
                warming[name] = (version, membership.n_publications)
        elif event == "warmed":
            for name in names & warming.keys():
                got, began = warming.pop(name)
                held[name] = got
                membership.warmed(name, got, "" if flag else "bits", now, n_publications=began)
        elif event == "failed":
            for name in names & membership.members.keys():
                membership.failed(name, "it failed", now)
                warming.pop(name, None)
        elif event == "decide":
            membership.decide(now)
        for name, member in membership.members.items():
            warming = {n: w for n, w in warming.items() if membership.members[n].apart}
            if member.state in IN_SERVICE:
                assert member.record.version == membership.version
                assert receivers is not None or held[name] == membership.version
        assert all(membership.members[name].state == "active" for name in membership.active())


class Warmer:
    """Warms up by saying what the test wants; ``holds`` lets warm-ups wait."""

    def __init__(self, version: int | None) -> None:
        self.version, self.error = version, ""
        self.asked: list[str] = []
        self.may_end = threading.Event()

    def warm_up(self, server: ServerRecord) -> WarmUp:
        self.asked.append(server.incarnation)
        assert self.may_end.wait(20)
        return WarmUp(self.version, self.error)


def world_with_newcomer(warmer: Warmer) -> World:
    world = World("a", topology_change_cooldown_seconds=0.0)
    world.begin()
    world.pool.warm_newcomers_by(warmer)
    world.start("x")
    world.refresh(at=1.0)
    return world


def test_the_pool_sends_requests_to_a_newcomer_as_soon_as_it_is_warm() -> None:
    warmer = Warmer(1)
    world = world_with_newcomer(warmer)
    [thread] = start_warm_ups(world.pool, warmer)
    assert start_warm_ups(world.pool, warmer) == []
    assert world.pool.status().members["x"].state == "warming"
    assert {world.pool.acquire(tokens=1).incarnation for _ in range(4)} == {"a"}
    assert not world.pool.has_newcomers(), "no publication is needed for it"
    warmer.may_end.set()
    thread.join(20)
    assert {world.pool.acquire(tokens=1).incarnation for _ in range(9)} == {"a", "x"}
    assert world.pool.decide().joined == ("x",)


def test_a_newcomer_joins_although_no_other_server_is_left() -> None:
    warmer = Warmer(1)
    world = world_with_newcomer(warmer)
    world.pool.failed("a", "killed")
    warmer.may_end.set()
    for thread in start_warm_ups(world.pool, warmer):
        thread.join(20)
    assert world.ask() == [3, 4, 5, 6]
    assert world.driver.servers["x"].requests


def test_without_a_stored_version_newcomers_wait_for_the_publication() -> None:
    world = world_with_newcomer(warmer := Warmer(None))
    assert start_warm_ups(world.pool, warmer) == []
    assert world.publish() == ["a", "x"]
