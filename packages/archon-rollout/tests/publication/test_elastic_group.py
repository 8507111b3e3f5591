"""Groups of two: bytes arrive in messages, and a missing or departed member is an error within the time limit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from archon_core.errors import ServerError
from archon_core.receiving import elastic_group
from archon_core.receiving.elastic_group import RECEIVER, SENDER, join_group, receive, send
from archon_rollout.transports.distributed import address_towards


@pytest.fixture(scope="module")
def store():
    return dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20), wait_for_workers=False)


def join_both(store, prefix):
    with ThreadPoolExecutor(2) as pool:
        joining = [
            pool.submit(join_group, "127.0.0.1", store.port, prefix, rank, timeout=20) for rank in (SENDER, RECEIVER)
        ]
        return [member.result() for member in joining]


def test_bytes_arrive_message_by_message_and_groups_are_independent(store, monkeypatch):
    monkeypatch.setattr(elastic_group, "MESSAGE_BYTES", 1000)
    content = torch.randint(0, 256, (2500,), dtype=torch.uint8)
    for epoch in range(2):
        sender, receiver = join_both(store, f"weights/{epoch}")
        found = torch.zeros_like(content)
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(send, sender, content, timeout=20)
            arrived = []
            for n_bytes in receive(receiver, found, timeout=20):
                assert torch.equal(found[:n_bytes], content[:n_bytes])
                arrived.append(n_bytes)
            sending.result()
        assert arrived == [1000, 2000, 2500]


def test_a_member_that_never_arrives_is_an_error_that_names_the_missing_key(store):
    with pytest.raises(ServerError, match=r"group weights/alone: rank 0 of 2 could not join .*keys: /weights/alone"):
        join_group("127.0.0.1", store.port, "weights/alone", SENDER, timeout=1)


def test_a_member_that_leaves_is_an_error(store):
    sender, receiver = join_both(store, "weights/left")
    del sender
    with pytest.raises(ServerError, match="cannot receive weights within"):
        list(receive(receiver, torch.zeros(8, dtype=torch.uint8), timeout=5))


def test_the_host_is_given_as_the_server_reaches_it():
    assert address_towards("127.0.0.1:80") == "127.0.0.1"
    with pytest.raises(ServerError, match="no network leads there"):
        address_towards("no-such-host.invalid:80")
