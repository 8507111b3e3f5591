"""The transport ``ipc`` with a fake device: plan, one export per buffer, and buffers that a late server reads."""

from __future__ import annotations

import pytest
import torch

from archon_core.contracts.weight_transport import TransportContext
from archon_core.errors import ServerError
from archon_core.receiving.memory_store import MemoryStore
from archon_core.receiving.updates import WeightUpdates
from archon_core.serving.record import ServerCapabilities, ServerRecord, ServerState
from archon_rollout.publication.publisher import Publisher, PublisherOptions
from archon_rollout.receiving.ipc import IpcReceiver
from archon_rollout.transports.ipc import IpcTransport

SERVER = ServerRecord("127.0.0.1:1", "a", "fake")


class FakeDevice:
    """Memory that its handles find again, with a record of what happened."""

    def __init__(self):
        self.memories = []
        self.exported = []
        self.opened = 0
        self.synchronised = 0

    def allocate(self, n_bytes):
        self.memories.append(torch.zeros(n_bytes, dtype=torch.uint8))
        return self.memories[-1]

    def export(self, memory):
        number = next(n for n, held in enumerate(self.memories) if held is memory)
        self.exported.append(number)
        return {"number": number}

    def open(self, handle):
        self.opened += 1
        return self.memories[handle["number"]]

    def synchronise(self):
        self.synchronised += 1


class InProcessServer:
    """A driver whose only server is an object."""

    capabilities = ServerCapabilities(("ipc",), ("keep",), staged=True, checksums=True)

    def __init__(self, device):
        self.store = MemoryStore()
        self.notices = []
        self.updates = WeightUpdates(
            self.store,
            incarnation="a",
            version=0,
            receiver_of=lambda name: IpcReceiver(timeout=5, memory=device),
        )

    def begin_update(self, server, plan, *, timeout):
        self.updates.begin(plan)

    def receive_bucket(self, server, notice, *, timeout):
        self.notices.append(notice)
        return self.updates.receive(notice)

    def verify_update(self, server, manifest, *, timeout):
        return self.updates.verify(manifest)

    def commit_update(self, server, version, *, timeout):
        self.updates.commit(version)

    def abort_update(self, server, version, *, timeout):
        self.updates.abort(version)

    def state(self, server, *, timeout):
        return ServerState("a", self.updates.version, False, self.updates.prepared, self.updates.updating)


@pytest.fixture
def device():
    return FakeDevice()


@pytest.fixture
def server(device):
    return InProcessServer(device)


def make_publisher(engine, server, device):
    context = TransportContext(server, "test", bucket_bytes=2**17)
    return Publisher(engine, server, IpcTransport(context, device), PublisherOptions(bucket_bytes=2**17))


def test_two_buffers_are_exported_once_and_carry_every_version(engine, server, device):
    publisher = make_publisher(engine, server, device)
    for _ in range(3):
        engine.step()
        assert publisher.publish([SERVER]).failed == ()
        assert all(torch.equal(server.store.tensors[name], tensor) for name, tensor in engine.tensors.items())
    publisher.close()
    assert device.exported == [0, 1]
    assert [notice.place["buffer"] for notice in server.notices] == [0, 1, 0] * 3
    assert device.synchronised == len(server.notices), "a notice follows the copies"
    assert device.opened == 2 * 3


def test_a_server_that_reads_a_buffer_after_its_reuse_is_found(engine, server, device):
    publisher = make_publisher(engine, server, device)
    engine.step()
    assert publisher.publish([SERVER]).failed == ()
    old = {name: tensor.clone() for name, tensor in engine.tensors.items()}
    engine.step()
    # The server sleeps; when it reads bucket 0, the trainer has put something else into the buffer.
    receive = server.receive_bucket

    def sleeping(called, notice, *, timeout):
        if notice.index == 0:
            device.memories[0].fill_(7)
        return receive(called, notice, timeout=timeout)

    server.receive_bucket = sleeping
    (failed,) = publisher.publish([SERVER]).failed
    publisher.close()
    assert failed.phase == "transfer"
    assert "the trainer has reused the buffer" in failed.reason
    assert all(torch.equal(server.store.tensors[name], tensor) for name, tensor in old.items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_device_the_transport_is_refused_with_the_alternative(server):
    with pytest.raises(ServerError, match=r"found no CUDA device.*rollout\.weight_transport=shm"):
        IpcTransport(TransportContext(server, "test"))
