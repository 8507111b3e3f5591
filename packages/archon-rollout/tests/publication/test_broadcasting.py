"""Broadcasts to all servers, on gloo in place of NCCL: one group, and after its failure each server alone."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from sending import assert_equal

from archon_core.contracts.weight_transport import TransportContext
from archon_core.errors import ServerError
from archon_rollout.publication.canary import Canary
from archon_rollout.publication.publisher import Publisher, PublisherOptions
from archon_rollout.transports import distributed
from archon_rollout.transports.broadcasting import BroadcastTransport, distributed_transport
from archon_rollout.transports.distributed import DistributedTransport


@pytest.fixture
def transport(context, store, monkeypatch):
    monkeypatch.setattr(distributed, "LEAST_SECONDS", 1.0)
    made = BroadcastTransport(replace(context, bucket_bytes=2**17, timeout=8.0), store, backend="gloo", device="cpu")
    yield made
    made.close()


@pytest.fixture
def publisher(engine, driver, transport):
    options = PublisherOptions(bucket_bytes=2**17, timeout=8.0, canary=Canary((1, 2, 3), n_tokens=4))
    return Publisher(engine, driver, transport, options)


def publish(publisher, engine, servers):
    engine.step()
    return publisher.publish(servers)


def test_one_group_brings_every_version_to_all_servers_until_they_change(
    publisher, transport, engine, servers, weights_of
):
    for members, epoch in ((servers, 1), (servers, 1), (servers[:1], 2), (servers, 3)):
        assert publish(publisher, engine, members).failed == ()
        assert transport._epoch == epoch
        for server in members:
            assert_equal(weights_of(server), engine.tensors)


def test_a_member_that_misses_a_broadcast_gets_the_bucket_alone(
    publisher, transport, engine, driver, servers, weights_of, monkeypatch, caplog
):
    assert publish(publisher, engine, servers).failed == ()
    receive, missed = driver.receive_bucket, []

    def receive_or_miss(server, notice, *, timeout):
        if server == servers[0] and notice.index == 1 and not missed:
            missed.append(notice)
            raise ServerError("connection reset")
        return receive(server, notice, timeout=timeout)

    monkeypatch.setattr(driver, "receive_bucket", receive_or_miss)
    with caplog.at_level(logging.WARNING):
        result = publish(publisher, engine, servers)
    assert len(missed) == 1
    assert result.committed == tuple(servers)
    assert "the broadcast of bucket 1 of version 2 failed" in caplog.text
    assert transport._epoch == 2, "the broadcasts, and the pairs"
    for server in servers:
        assert_equal(weights_of(server), engine.tensors)


@pytest.mark.wide
@pytest.mark.parametrize("victim", [0, 1])
def test_a_member_that_dies_in_the_middle_leaves_and_the_rest_is_sent_in_pairs(
    victim, publisher, transport, engine, driver, servers, own_servers, weights_of, caplog
):
    [(_, killed)] = own_servers(1)
    members = [*servers]
    # The tree of gloo's broadcast passes through some members only, so the position matters.
    members.insert(victim, killed)
    assert publish(publisher, engine, members).failed == ()
    driver.call(killed, "fault", {"die_at": 1})
    with caplog.at_level(logging.WARNING):
        result = publish(publisher, engine, members)
    assert result.committed == tuple(servers)
    [failed] = result.failed
    assert (failed.server, failed.phase, failed.state) == (killed, "transfer", None)
    assert "the broadcast of bucket 1 of version 2 failed" in caplog.text
    assert len([record for record in caplog.records if "each server alone" in record.message]) == 1
    assert transport._epoch == 2, "the broadcasts, and the pairs"
    for server in servers:
        assert_equal(weights_of(server), engine.tensors)
    assert publish(publisher, engine, servers).failed == ()
    assert transport._epoch == 3, "the next version is broadcast again"


@pytest.mark.wide
def test_a_member_that_never_joins_leaves_and_the_others_get_pairs(
    publisher, transport, engine, servers, own_servers, weights_of
):
    [(process, gone)] = own_servers(1)
    process.kill()
    process.wait()
    result = publish(publisher, engine, [*servers, gone])
    assert result.committed == tuple(servers)
    assert [(failed.server, failed.phase) for failed in result.failed] == [(gone, "prepare")]
    for server in servers:
        assert_equal(weights_of(server), engine.tensors)


@pytest.mark.wide
def test_a_stopped_member_is_not_called_again(publisher, engine, driver, servers, own_servers, weights_of):
    [(_, stopped)] = own_servers(1)
    members = [servers[0], stopped, servers[1]]
    assert publish(publisher, engine, members).failed == ()
    driver.call(stopped, "fault", {"stop_at": 1})
    result = publish(publisher, engine, members)
    assert result.committed == tuple(servers)
    [failed] = result.failed
    assert (failed.server, failed.phase) == (stopped, "transfer")
    assert "no answer within" in failed.reason
    assert "sent again" not in failed.reason
    for server in servers:
        assert_equal(weights_of(server), engine.tensors)


def test_unchanged_tensors_are_not_broadcast_again(driver, transport, engine, servers, weights_of):
    publisher = Publisher(engine, driver, transport, PublisherOptions(bucket_bytes=2**17, skip_unchanged=True))
    frozen = engine.tensors["frozen"].numel() * 4
    whole = engine.weight_manifest().n_bytes
    assert [publish(publisher, engine, servers).sent_bytes for _ in range(2)] == [whole, whole - frozen]
    assert_equal(weights_of(servers[1]), engine.tensors)


@pytest.mark.parametrize(("group", "kind"), [("gloo", DistributedTransport), ("nccl", BroadcastTransport)])
def test_the_option_chooses_the_form(group, kind, driver, store, monkeypatch):
    monkeypatch.setattr(distributed, "StoreProcess", lambda: store)
    made = distributed_transport(TransportContext(driver, "test", options={"weight_group": group}))
    assert type(made) is kind
    made.close()
