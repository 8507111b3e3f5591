"""Gathering into the memory of a transport: a tensor is copied once, and rank 0 holds two buckets beside its shards."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.engine_config import EngineConfig
from archon_core.contracts.spec import load_target
from archon_core.contracts.weight_transport import TransportContext
from archon_core.serving.manifest import plan_buckets, size_of_bucket
from archon_core.serving.record import ServerCapabilities, ServerRecord, ServerState
from archon_rollout.publication.publisher import Publisher, PublisherOptions
from archon_rollout.receiving.ipc import IpcReceiver
from archon_rollout.server.weight_copies import EngineCopies, ServedWeights
from archon_rollout.transports.ipc import IpcTransport
from archon_testing.worlds import run_world

SERVER = ServerRecord("127.0.0.1:1", "a", "fake")
SCRIPT = Path(__file__).parents[1] / "packages/archon-rollout/tests/publication/weight_server.py"


def make_engine(seed, *, layout="archon:d1", **config):
    config = {**load_target(registry().get("model", "qwen3").tiny_config)(), **config}
    engine = assemble(
        EngineConfig(model_config=config, dtype="float32", optimizer=None), layout=parse_layout(layout), seed=seed
    )
    engine.initialize()
    return engine


def weight_server():
    spec = importlib.util.spec_from_file_location("weight_server", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FakeDevice:
    """Device memory in this process; implements ``device_memory.DeviceMemory``."""

    def __init__(self):
        self.memories = []

    def allocate(self, n_bytes):
        self.memories.append(torch.zeros(n_bytes, dtype=torch.uint8))
        return self.memories[-1]

    def export(self, memory):
        return {"number": next(n for n, held in enumerate(self.memories) if held is memory)}

    def open(self, handle):
        return self.memories[handle["number"]]

    def synchronise(self):
        pass


class InProcessServer:
    """A driver whose only server has the weights of a real server."""

    capabilities = ServerCapabilities(("ipc",), ("keep",), staged=True, checksums=True)

    def __init__(self, weights, device):
        self.weights, self.updates = weights, weights.updates
        self.updates._receiver_of = lambda name: IpcReceiver(timeout=5, memory=device)

    def begin_update(self, server, plan, *, timeout):
        self.weights.begin(plan)

    def receive_bucket(self, server, notice, *, timeout):
        return self.updates.receive(notice)

    def verify_update(self, server, manifest, *, timeout):
        return self.updates.verify(manifest)

    def commit_update(self, server, version, *, timeout):
        self.updates.commit(version)

    def state(self, server, *, timeout):
        return ServerState("a", self.updates.version, False)


def test_a_served_model_receives_by_ipc_what_the_trainer_gathered_in_device_memory():
    trainer, device = make_engine(1), FakeDevice()
    copies = EngineCopies(make_engine(2), lambda: make_engine(3))
    server = InProcessServer(ServedWeights(copies, version=-1, incarnation="a"), device)
    limit = 50_000
    transport = IpcTransport(TransportContext(server, "test", bucket_bytes=limit), device)
    seen = []
    place = transport._place

    def recorded(bucket, notice):
        seen.append(bucket.content.data_ptr())
        return place(bucket, notice)

    transport._place = recorded
    publisher = Publisher(trainer, server, transport, PublisherOptions(bucket_bytes=limit))
    for version in (0, 1):
        trainer._version = version
        assert publisher.publish([SERVER]).failed == ()
        for name, parameter in trainer.parameters.items():
            assert torch.equal(server.weights.active.parameters[name], parameter)
    publisher.close()
    assert len(device.memories) == 2
    assert set(seen) == {memory.data_ptr() for memory in device.memories}, "no bucket was copied into the buffers"


def test_the_engine_assembles_buckets_in_given_memory_and_takes_none_itself():
    engine = make_engine(1)
    manifest, limit = engine.weight_manifest(), 50_000
    largest = max(map(size_of_bucket, plan_buckets(manifest.tensors, limit)))
    slots, asked = [torch.zeros(largest, dtype=torch.uint8) for _ in range(2)], []

    def memory(index, n_bytes):
        asked.append((index, n_bytes))
        return slots[index % 2]

    gathered = {}
    for bucket in engine.weight_buckets(limit, None, memory):
        assert bucket.content.data_ptr() == slots[bucket.index % 2].data_ptr()
        gathered |= {name: tensor.clone() for name, tensor in bucket.tensors.items()}
    assert asked == [(index, largest) for index in range(len(plan_buckets(manifest.tensors, limit)))]
    expected = {name: t.clone() for bucket in engine.weight_buckets(2**40) for name, t in bucket.tensors.items()}
    assert gathered.keys() == expected.keys()
    assert all(torch.equal(gathered[name], tensor) for name, tensor in expected.items())


def resident(field):
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_of_publishing(transport, line):
    """Buckets that a rank holds at most while it publishes, beside what was resident before."""
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6, "vocab_size": 4096}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 6, "head_dim": 64}
    engine = make_engine(1, layout="archon:t2", **sizes, **heads)
    is_first, module = engine.data_ranks.everyone.is_first, weight_server()
    driver, servers = (module.HttpDriver(), [module.record_of(line)]) if is_first else (None, [])
    limit = 2**26  # blocks above 32 MiB never lie in freed memory of the heap, which is resident already
    largest = max(map(size_of_bucket, plan_buckets(engine.weight_manifest().tensors, limit)))
    for version, size in enumerate((2**20, limit)):  # small buckets first: whatever gloo and torch allocate once
        sender = None
        if is_first:
            spec = registry().get("weight_transport", transport)
            sender = spec.load()(TransportContext(driver, "peak", bucket_bytes=size))
        publisher = Publisher(engine, driver, sender, PublisherOptions(size))
        engine._version = version + 1
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
        assert publisher.publish(servers).failed == ()
        peak = resident("VmHWM")
        publisher.close()
    return (peak - before) / largest


@pytest.mark.wide
@pytest.mark.parametrize("transport", ["shm", "distributed"])
def test_no_rank_holds_more_than_two_buckets_beside_its_shards(transport):
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        first, other = run_world(peak_of_publishing, 2, (transport, process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    # The system gives memory in pages, and threads have stacks: a tenth of a bucket is allowed for.
    assert 1 < first <= 2.1
    assert other <= 0.1, "other ranks hold one message of 4 MiB"
