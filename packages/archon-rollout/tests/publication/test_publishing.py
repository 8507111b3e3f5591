"""Publication to real processes: every transport brings the bits of every tensor, in buckets of any size."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import uuid
from dataclasses import replace

import pytest
import torch
from sending import arenas, assert_equal, make_publisher

SIZES = {"1 KiB": 2**10, "128 KiB": 2**17, "whole": 2**30}

# The store of a group is a process that takes seconds to start.
CASES = [
    pytest.param(transport, size, marks=[pytest.mark.wide] * (transport == "distributed"))
    for transport in ("disk", "shm", "distributed")
    for size in SIZES
]


@pytest.mark.parametrize(("transport", "size"), CASES)
def test_servers_hold_the_bits_of_every_version(transport, size, engine, driver, context, servers, weights_of):
    publisher = make_publisher(engine, driver, context, transport, bucket_bytes=SIZES[size])
    for _ in range(3):
        engine.step()
        result = publisher.publish(servers)
        assert result.failed == ()
        assert result.committed == tuple(servers)
        assert result.version == engine.version
        for server in servers:
            assert_equal(weights_of(server), engine.tensors)
            assert driver.state(server, timeout=5).version == engine.version
    publisher.close()
    assert arenas(context.run) == []


@pytest.mark.parametrize("size", ["1 KiB", "whole"])
@pytest.mark.parametrize("transport", ["disk", "shm", pytest.param("distributed", marks=pytest.mark.wide)])
def test_unchanged_tensors_are_not_sent_again(transport, size, engine, driver, context, servers, weights_of):
    publisher = make_publisher(engine, driver, context, transport, bucket_bytes=SIZES[size], skip_unchanged=True)
    whole = engine.weight_manifest().n_bytes
    frozen = engine.tensors["frozen"].numel() * 4
    for sent in (whole, whole - frozen, whole - frozen):
        engine.step()
        result = publisher.publish(servers)
        assert result.failed == ()
        # An empty tensor never changes, and has no bytes.
        assert result.sent_bytes == sent
        for server in servers:
            assert_equal(weights_of(server), engine.tensors)
    # A server with another version has other tensors to build on: all are sent.
    other = make_publisher(engine, driver, context, "disk")
    engine.step()
    assert other.publish(servers[:1]).failed == ()
    engine.step()
    assert publisher.publish(servers).sent_bytes == whole
    for server in servers:
        assert_equal(weights_of(server), engine.tensors)
    publisher.close()
    other.close()


def test_the_report_accounts_for_bytes_seconds_and_waits(engine, driver, context, servers):
    publisher = make_publisher(engine, driver, context, "shm", bucket_bytes=2**17)
    engine.step()
    result = publisher.publish(servers)
    publisher.close()
    assert len(result.buckets) == 3
    assert result.sent_bytes == result.n_bytes == engine.weight_manifest().n_bytes
    assert list(result.seconds) == ["prepare", "transfer", "verify", "commit", "canary"]
    metrics = result.metrics()
    assert metrics["publish/gb"] == result.n_bytes / 1e9
    assert metrics["publish/servers"] == 2
    assert metrics["publish/wait_s"] <= metrics["publish/transfer_s"] <= metrics["publish/seconds"]
    text = result.describe()
    assert "published version 1 to 2 of 2 servers: 0.6 of 0.6 MB in 3 buckets" in text
    assert "longest wait: bucket" in text
    assert len(re.findall(r"\d+\+\d+", text.partition("per bucket, in ms: ")[2])) == 3
    many = replace(result, buckets=result.buckets * 7)
    assert many.describe().endswith(" and 5 more buckets")


KILLED = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from conftest import TensorEngine
from sending import make_publisher
from weight_server import HttpDriver, record_of
from archon_core.contracts.weight_transport import TransportContext
from pathlib import Path
engine, driver = TensorEngine(), HttpDriver()
publisher = make_publisher(engine, driver, TransportContext(driver, sys.argv[3], Path(sys.argv[1])), "shm")
engine.step()
result = publisher.publish([record_of(line) for line in json.loads(sys.argv[2])])
print(len(result.committed), flush=True)
time.sleep(60)
"""


@pytest.mark.wide
def test_a_killed_trainer_leaves_an_arena_that_the_next_one_removes(engine, driver, context, servers, weights_of):
    lines = [json.dumps({"address": server.address, "incarnation": server.incarnation}) for server in servers]
    killed = uuid.uuid4().hex
    folder = str(pytest.importorskip("weight_server").__file__).rpartition("/")[0]
    trainer = subprocess.Popen(
        [sys.executable, "-c", KILLED, folder, json.dumps(lines), killed], stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdout.readline() == "2\n"
    (left,) = arenas(killed)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    trainer.stdout.close()
    publisher = make_publisher(engine, driver, context, "shm")
    engine.step()
    assert publisher.publish(servers).failed == ()
    assert left not in arenas(killed)
    assert torch.equal(weights_of(servers[0])["norm"], engine.tensors["norm"])
    publisher.close()
    assert arenas(context.run) == []
