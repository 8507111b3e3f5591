"""The order of a publication: one pending bucket, waited for in order; every bucket is taken even without servers."""

from __future__ import annotations

import threading

import pytest

from archon_core.contracts.rollout import Completion
from archon_core.contracts.weight_transport import Outcome
from archon_core.errors import ServerError, UncertainCallError
from archon_core.serving.record import ServerCapabilities, ServerRecord, ServerState
from archon_core.serving.update import Receipt
from archon_rollout.publication.canary import canary_problem
from archon_rollout.publication.publisher import Publisher, PublisherOptions
from archon_rollout.served.elastic_hooks import ElasticHooks

SERVERS = [ServerRecord("127.0.0.1:1", "a", "fake"), ServerRecord("127.0.0.1:2", "b", "fake")]


class FakeServers:
    """Holds the state of each server; ``failing`` maps (verb, incarnation) to what the call raises."""

    capabilities = ServerCapabilities(("fake",), ("keep",), checksums=True)

    def __init__(self, events):
        self.events = events
        self.versions = {server.incarnation: 0 for server in SERVERS}
        self.paused = set()
        self.failing = {}
        self.limits = {}

    def happen(self, verb, server, timeout):
        self.limits[verb] = timeout
        self.events.append(f"{verb} {server.incarnation}")
        if error := self.failing.get((verb, server.incarnation)):
            raise error

    def verify_update(self, server, manifest, *, timeout):
        self.happen("verify", server, timeout)
        return Receipt(server.incarnation, manifest.version, {e.name: e.checksum for e in manifest.tensors})

    def commit_update(self, server, version, *, timeout):
        self.versions[server.incarnation] = version
        self.happen("commit", server, timeout)

    def abort_update(self, server, version, *, timeout):
        self.happen("abort", server, timeout)

    def pause(self, server, mode, *, timeout):
        self.happen(f"pause-{mode}", server, timeout)
        self.paused.add(server.incarnation)

    def resume(self, server, *, timeout):
        self.happen("resume", server, timeout)
        self.paused.discard(server.incarnation)

    def state(self, server, *, timeout):
        self.happen("state", server, timeout)
        return ServerState(server.incarnation, self.versions[server.incarnation], server.incarnation in self.paused)


class FakeTransport:
    """Records calls; buckets in ``failing`` fail on every server."""

    def __init__(self, events):
        self.events = events
        self.failing = ()
        self.servers = []

    def prepare(self, version, manifest, servers):
        self.events.append("prepare")
        self.servers = list(servers)
        return {server.incarnation: Outcome(None) for server in servers}

    def memory(self):
        return None

    def send(self, bucket, notice):
        self.events.append(f"send {bucket.index}")
        return bucket.index

    def wait(self, pending):
        self.events.append(f"wait {pending}")
        error = "lost" if pending in self.failing else ""
        return {server.incarnation: Outcome(None, error) for server in self.servers}

    def finish(self, manifest):
        self.events.append("finish")

    def commit(self, version):
        self.events.append("committed")

    def abort(self):
        self.events.append("aborted")

    def close(self):
        pass


def make(engine, events):
    gathered = engine.weight_buckets

    def recorded(max_bytes, dtype=None, memory=None):
        for bucket in gathered(max_bytes, dtype, memory):
            events.append(f"gather {bucket.index}")
            yield bucket

    engine.weight_buckets = recorded
    servers, transport = FakeServers(events), FakeTransport(events)
    return Publisher(engine, servers, transport, PublisherOptions(bucket_bytes=2**17)), servers, transport


def test_the_next_bucket_is_gathered_while_one_is_on_its_way_and_waits_are_in_order(engine):
    events = []
    publisher, _, _ = make(engine, events)
    result = publisher.publish(SERVERS)
    assert events[:11] == [
        "prepare",
        "gather 0",
        "send 0",
        "gather 1",
        "wait 0",
        "send 1",
        "gather 2",
        "wait 1",
        "send 2",
        "wait 2",
        "finish",
    ]
    rest = events[11:]
    assert sorted(rest[:2]) == ["verify a", "verify b"]
    assert rest.index("commit a") < rest.index("state a") < rest.index("committed") == len(rest) - 1
    assert result.committed == tuple(SERVERS)


class ChangingPool:
    """A pool whose servers change while bucket 1 is gathered."""

    def __init__(self, events):
        self.events = events

    def consume_group_rebuild_request(self):
        return "gather 1" in self.events and "aborted" not in self.events


def test_a_change_during_a_publication_rebuilds_groups_after_the_pending_buckets(engine):
    events = []
    publisher, _, _ = make(engine, events)
    hooks = ElasticHooks()
    hooks._pool, hooks._publisher, hooks._ranks = ChangingPool(events), publisher, engine.data_ranks.everyone
    assert not hooks.maybe_rebuild_weight_update_group()
    assert publisher.publish(SERVERS).committed == tuple(SERVERS)
    assert [event for event in events if event.startswith("wait")] == ["wait 0", "wait 1", "wait 2"]
    assert events[-1] == "committed", "the groups stayed until the end"
    assert hooks.maybe_rebuild_weight_update_group()
    assert events[-1] == "aborted"
    assert not hooks.maybe_rebuild_weight_update_group()


def test_every_bucket_is_taken_after_all_servers_failed(engine):
    events = []
    publisher, _, transport = make(engine, events)
    transport.failing = (0,)
    result = publisher.publish(SERVERS)
    assert events[:6] == ["prepare", "gather 0", "send 0", "gather 1", "wait 0", "gather 2"]
    assert "aborted" in events
    assert not {"send 1", "finish", "verify a", "commit a", "committed"} & set(events)
    assert {(failed.phase, failed.reason) for failed in result.failed} == {("transfer", "lost")}
    assert all(failed.serves_old_weights for failed in result.failed)


def test_an_unanswered_commit_counts_if_the_servers_state_says_that_it_was_executed(engine):
    engine.step()
    publisher, servers, _ = make(engine, [])
    servers.failing = {("commit", "a"): UncertainCallError("no answer")}
    servers.paused = {"a"}
    result = publisher.publish(SERVERS)
    assert result.committed == tuple(SERVERS)
    assert servers.paused == set(), "the pause of the commit was left behind, and is undone"


def test_a_failed_commit_does_not_count_as_executed_because_an_earlier_trainer_left_the_same_version(engine):
    publisher, servers, _ = make(engine, [])
    a, b = SERVERS  # both have version 0, which is the engine's, too
    servers.failing = {("commit", "a"): ServerError("out of memory")}
    result = publisher.publish([a, b])
    assert result.committed == (b,)
    assert [(one.phase, one.reason) for one in result.failed] == [
        ("commit", "out of memory; it had weights of version 0 before, which may be others")
    ]


def test_a_failed_server_is_told_to_abort_before_its_state_is_queried(engine):
    engine.step()
    events = []
    publisher, servers, _ = make(engine, events)
    servers.failing = {("verify", "a"): ServerError("wrong values"), ("state", "b"): UncertainCallError("no answer")}
    result = publisher.publish(SERVERS)
    assert result.committed == ()
    by_server = {failed.server.incarnation: failed for failed in result.failed}
    assert (by_server["a"].phase, by_server["a"].state.version) == ("verify", 0)
    assert events.index("abort a") < events.index("state a")
    assert (by_server["b"].phase, by_server["b"].state) == ("commit", None), "it did not tell its state"
    limits = [servers.limits[verb] for verb in ("verify", "commit", "abort", "state")]
    assert limits == [60, 60, 10, 10], "a stopped server delays the others by little more than one call"


def test_a_failure_names_its_server_once(engine, caplog):
    publisher, servers, _ = make(engine, [])
    lost = UncertainCallError("server 127.0.0.1:1: cannot connect")
    servers.failing = {("verify", "a"): lost, ("abort", "a"): lost}
    [failed] = publisher.publish(SERVERS).failed
    assert failed.reason == "cannot connect"
    assert caplog.messages == [
        "server 127.0.0.1:1 failed in verify: cannot connect",
        "server 127.0.0.1:1: cannot connect",
    ]


def test_a_publication_that_raises_leaves_no_threads(engine, monkeypatch):
    publisher, servers, _ = make(engine, [])
    commit, threads = servers.commit_update, []

    def remember_thread(server, version, *, timeout):
        threads.append(threading.current_thread())
        commit(server, version, timeout=timeout)

    def fail(attempt, manifest):
        raise RuntimeError("the forward pass failed")

    monkeypatch.setattr(servers, "commit_update", remember_thread)
    monkeypatch.setattr(publisher, "_run_canary", fail)
    with pytest.raises(RuntimeError, match="the forward pass failed") as failure:  # its frames keep the attempt
        publisher.publish(SERVERS)
    [worker] = [thread for thread in threads if thread is not threading.current_thread()]
    worker.join(20)
    assert not worker.is_alive(), failure


def test_the_canary_compares_versions_and_every_token():
    completion = Completion((5, 6), (-1.0, -2.0), (7, 7), "length")
    assert canary_problem(completion, [-1.0, -2.0005], version=7, tolerance=1e-3) == ""
    assert "token 1 of the canary is -2.00000" in canary_problem(completion, [-1.0, -2.5], version=7, tolerance=1e-3)
    assert "carry version 7, not 8" in canary_problem(completion, [-1.0, -2.0], version=8, tolerance=1e-3)
    broken = Completion((5,), (float("nan"),), (7,), "length")
    assert "is nan" in canary_problem(broken, [-1.0], version=7, tolerance=1e9)
