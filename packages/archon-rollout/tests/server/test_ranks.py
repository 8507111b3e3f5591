"""The ranks of one server find each other on their machine only."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest

from archon_core.layout import parse_layout
from archon_core.ranks.ranks import Ranks
from archon_rollout.server import process


def test_the_store_of_a_server_with_two_ranks_listens_on_loopback_only(monkeypatch) -> None:
    archon = SimpleNamespace(model="")
    model = SimpleNamespace(name="m", config=SimpleNamespace(dtype="float32", archon=archon))
    layout = parse_layout("archon:t2")
    options = SimpleNamespace(layout=layout, model=model, first_version=0, max_batch_size=1)
    ports = []
    monkeypatch.setattr(process, "start_follower", lambda rank, size, port, options: ports.append(port))

    def join(store, rank, size):
        socket.create_connection(("127.0.0.1", *ports), timeout=5).close()
        with pytest.raises(OSError):  # noqa: PT011
            socket.create_connection(("127.0.0.2", *ports), timeout=5)
        return Ranks()

    monkeypatch.setattr(process, "join", join)
    process._start_ranks(options, [])
    assert len(ports) == 1
