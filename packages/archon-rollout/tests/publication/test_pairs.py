"""Pairs of the transport ``distributed``: measured time limits, and servers that join when nobody waits any more."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from archon_core.errors import ServerError
from archon_core.serving.manifest import TensorEntry
from archon_core.serving.record import ServerRecord
from archon_core.serving.update import UpdatePlan, notice_of
from archon_rollout.transports import distributed
from archon_rollout.transports.distributed import LEAST_SECONDS, SLOWER, DistributedTransport


def notice(version, n_bytes, kept_bytes=0):
    """A bucket with one tensor to send, and one that servers keep."""
    sent = TensorEntry("sent", "uint8", (n_bytes,))
    return notice_of(version, 0, (sent, TensorEntry("kept", "uint8", (kept_bytes,), encoding="kept")))


@pytest.fixture
def transport(context, store):
    made = DistributedTransport(context, store)
    yield made
    made.close()


def test_the_slowest_server_of_a_version_sets_the_time_limit(transport):
    for seconds in (2.0, 3.0, 1.0):
        transport._measure(notice(1, 1000), seconds)
    transport._measure(notice(1, 10), 5.0)
    assert transport._time_limit(notice(1, 1000)) == SLOWER * 3.0
    transport._measure(notice(2, 0), 9.0)
    transport._measure(notice(2, 1000), 1.5)
    assert transport._time_limit(notice(2, 1000)) == SLOWER * 1.5
    assert transport._time_limit(notice(2, 1)) == LEAST_SECONDS


def test_tensors_that_servers_keep_do_not_count_as_measured_bytes(transport):
    transport._measure(notice(1, 1000), 2.0)
    transport._measure(notice(2, 10, kept_bytes=990), 0.01)
    assert transport._time_limit(notice(3, 1000)) == SLOWER * 2.0
    assert transport._time_limit(notice(3, 10, kept_bytes=990)) == LEAST_SECONDS


def test_a_transfer_that_exceeds_its_limit_doubles_it_until_a_version_succeeds(context, store, monkeypatch):
    monkeypatch.setattr(distributed, "LEAST_SECONDS", 0.02)
    transport = DistributedTransport(context, store)
    [server] = transport._servers = [ServerRecord("127.0.0.1:1", "a", "fake")]
    limits = []

    def receive(*arguments, timeout):
        limits.append(transport._time_limit(bucket))
        time.sleep(limits[-1] * server_is_slow.pop(0))
        raise ServerError("it fails")

    monkeypatch.setattr(transport._context.driver, "receive_bucket", receive)
    bucket = notice(1, 1000)
    transport._measure(bucket, 0.001)
    server_is_slow = [True, True, False, False]
    while server_is_slow:
        transport._pairs = transport._new_pairs()
        with pytest.raises(ServerError, match="it fails"):
            transport._let_receive(server, bucket)
        transport._leave_groups()
    assert limits == pytest.approx([0.02, 0.04, 0.08, 0.08])
    transport.commit(1)
    assert transport._time_limit(bucket) == pytest.approx(0.08)
    transport.commit(2)
    assert transport._time_limit(bucket) == pytest.approx(0.02)
    transport.close()


def test_a_pair_that_is_joined_after_its_epoch_was_left_is_left_too(transport, monkeypatch):
    [server] = transport._servers = [ServerRecord("127.0.0.1:1", "a", "fake")]
    transport._pairs = transport._new_pairs()
    late, left = threading.Event(), []

    def join_late(setup, rank, *, timeout, given_up):
        assert late.wait(20)
        return "late pair"

    monkeypatch.setattr(distributed, "join_as", join_late)
    monkeypatch.setattr(distributed, "leave", left.append)

    def refuse(*arguments, **options):
        raise ServerError("it refuses")

    monkeypatch.setattr(transport._context.driver, "receive_bucket", refuse)
    with pytest.raises(ServerError, match="it refuses"):
        transport._let_receive(server, notice(1, 1000))
    transport._leave_groups()
    transport._new_pairs()
    late.set()
    transport._partners.shutdown(wait=True)
    assert (transport._groups, left) == ({}, ["late pair"])


@pytest.mark.parametrize("step", ["begin", "bucket"])
def test_a_thread_that_waits_for_a_server_ends_when_the_call_to_it_fails(transport, monkeypatch, step):
    monkeypatch.setattr(distributed, "JOIN_SECONDS", 1000.0)
    transport._context = SimpleNamespace(**{**vars(transport._context), "timeout": 2000.0})
    [server] = transport._servers = [ServerRecord("127.0.0.1:1", "a", "fake")]
    transport._pairs = transport._new_pairs()

    def refuse(*arguments, **options):
        raise ServerError("it refuses")

    monkeypatch.setattr(transport._context.driver, "begin_update", refuse)
    monkeypatch.setattr(transport._context.driver, "receive_bucket", refuse)
    call, argument = {
        "begin": (transport._begin, UpdatePlan(None, "distributed")),
        "bucket": (transport._let_receive, notice(1, 1000)),
    }[step]
    with pytest.raises(ServerError, match="it refuses"):
        call(server, argument)
    transport._partners.shutdown(wait=True)  # returns, although the server never arrives
    assert transport._groups == {}
