"""``rollout.interruption``: what a commit does to requests that run."""

from __future__ import annotations

from dataclasses import replace

from test_order import SERVERS, make

from archon_core.errors import ServerError, UncertainCallError


def interrupting(engine, **options):
    events = []
    publisher, servers, _ = make(engine, events)
    publisher._options = replace(publisher._options, **options)
    return publisher, servers, events


def calls_to(server, events):
    return [event.split()[0] for event in events if event.endswith(f" {server}")]


def test_requests_go_on_over_a_commit_unless_they_are_interrupted(engine):
    publisher, _, events = interrupting(engine)
    publisher.publish(SERVERS)
    assert calls_to("a", events) == ["verify", "commit", "state"]


def test_an_interruption_ends_requests_before_the_switch_and_resumes_after_it(engine):
    publisher, servers, events = interrupting(engine, interrupts=True)
    result = publisher.publish(SERVERS)
    for name in "ab":
        assert calls_to(name, events) == ["verify", "pause-abort", "commit", "resume", "state"]
    assert result.committed == tuple(SERVERS)
    assert not servers.paused


def test_the_grace_period_is_waited_for_between_pause_and_switch(engine, monkeypatch):
    publisher, _, events = interrupting(engine, interrupts=True, grace=2.5)
    monkeypatch.setattr("archon_rollout.publication.publisher.time.sleep", lambda s: events.append(f"sleep-{s} a"))
    publisher.publish(SERVERS[:1])
    assert calls_to("a", events) == ["verify", "pause-abort", "sleep-2.5", "commit", "resume", "state"]


def test_a_server_that_fails_to_switch_is_resumed(engine):
    publisher, servers, events = interrupting(engine, interrupts=True)
    servers.failing["commit", "a"] = UncertainCallError("no answer")
    servers.versions["a"] = 7
    servers.commit_update = lambda server, version, *, timeout: servers.happen("commit", server, timeout)
    result = publisher.publish(SERVERS[:1])
    assert calls_to("a", events)[:5] == ["verify", "pause-abort", "commit", "resume", "state"]
    assert not servers.paused
    [failed] = result.failed
    assert failed.reason == "no answer, but it is at version 7, not 0"


def test_a_pause_that_fails_does_not_switch_and_is_resumed(engine):
    publisher, servers, events = interrupting(engine, interrupts=True)
    servers.failing["pause-abort", "a"] = ServerError("it refuses")
    servers.versions["a"] = 7
    result = publisher.publish(SERVERS[:1])
    assert calls_to("a", events)[:4] == ["verify", "pause-abort", "resume", "state"]
    assert [one.reason for one in result.failed] == ["it refuses, but it is at version 7, not 0"]
