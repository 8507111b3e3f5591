"""Real servers without models, started once per session, and an engine whose weights are a few tensors."""

from __future__ import annotations

import subprocess
import sys
import uuid
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))

from weight_server import HttpDriver, logprobs_of, record_of

from archon_core.contracts.weight_transport import TransportContext, WeightBucket
from archon_core.ranks.ranks import DataRanks
from archon_core.receiving.shared_memory import view_tensor
from archon_core.serving.manifest import TensorEntry, WeightManifest, offsets_of, plan_buckets, size_of_bucket

SCRIPT = Path(__file__).parent / "weight_server.py"


class TensorEngine:
    """The part of ``TrainEngine`` that a publisher uses. A step changes every weight but the frozen one."""

    data_ranks = DataRanks()

    def __init__(self):
        self.version = 0
        generator = torch.Generator().manual_seed(1)
        self.tensors = {
            "embed": torch.rand(50, 40, generator=generator),
            "layers.0.up": torch.rand(30, 40, generator=generator).bfloat16(),
            "layers.0.down": torch.rand(30, 40, generator=generator).bfloat16(),
            "layers.1.up": torch.rand(300, 400, generator=generator),
            "frozen": torch.rand(200, 100, generator=generator),
            "norm": torch.rand(40, generator=generator),
            "empty": torch.rand(0, 4),
            "scalar": torch.rand((), generator=generator),
        }

    def step(self):
        self.version += 1
        for name, tensor in self.tensors.items():
            if name != "frozen":
                tensor.add_(0.25 * self.version)

    def weight_manifest(self, dtype=None):
        entries = [
            TensorEntry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in self.tensors.items()
        ]
        return WeightManifest(self.version, tuple(entries))

    def weight_buckets(self, max_bytes, dtype=None, memory=None):
        buckets = plan_buckets(self.weight_manifest().tensors, max_bytes)
        largest = max(map(size_of_bucket, buckets))
        for index, entries in enumerate(buckets):
            tensors = {entry.name: self.tensors[entry.name] for entry in entries}
            if memory is None:
                yield WeightBucket(index, tensors)
                continue
            content = memory(index, largest)
            views = {
                entry.name: view_tensor(content, entry, offset)
                for entry, offset in zip(entries, offsets_of(entries), strict=True)
            }
            for name, view in views.items():
                view.copy_(tensors[name])
            yield WeightBucket(index, views, content[: size_of_bucket(entries)])

    def forward_batch(self, batch, request):
        values = []
        for length in batch.lengths:
            prompt = 3
            values += [0.0] * (prompt - 1) + logprobs_of(self.tensors, length - prompt) + [0.0]
        return {"logprobs": torch.tensor(values, dtype=torch.float64)}


def start_servers(n, timeout=5.0):
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(timeout)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(n)
    ]
    return [(process, record_of(process.stdout.readline())) for process in processes]


def stop(process):
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


@pytest.fixture(scope="session")
def running():
    """Two servers, reused by all tests that do not end them."""
    started = start_servers(2)
    yield [record for _, record in started]
    for process, _ in started:
        stop(process)


@pytest.fixture
def driver():
    return HttpDriver()


@pytest.fixture
def servers(running, driver):
    """The two servers, without the faults of earlier tests."""
    yield running
    clean = {"drop": None, "flip": None, "swap": ("", ""), "sleep_in": None, "honest": True, "keep_old": False}
    for server in running:
        driver.call(server, "fault", {**clean, "label_off_by": 0, "token_off_by": 0, "last_token": 3})
        driver.call(server, "resume")


@pytest.fixture
def engine():
    return TensorEngine()


@pytest.fixture
def context(driver, tmp_path):
    return TransportContext(driver, run=uuid.uuid4().hex, folder=tmp_path, timeout=20.0)


@pytest.fixture
def own_servers():
    """Starts servers that a test may end."""
    started = []

    def start(n):
        new = start_servers(n)
        started.extend(new)
        return new

    yield start
    for process, _ in started:
        stop(process)


class InProcessStore:
    """A store in this process, which starts at once; implements ``store_process.Store``."""

    def __init__(self):
        limit = timedelta(seconds=20)
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=limit, wait_for_workers=False)

    def start(self):
        pass

    @property
    def port(self):
        return self._store.port

    def close(self):
        pass


@pytest.fixture(scope="session")
def store():
    return InProcessStore()


@pytest.fixture
def weights_of(driver, tmp_path):
    """The weights that a server uses."""

    def fetch(server):
        path = tmp_path / f"{server.incarnation}.pt"
        driver.call(server, "weights", str(path))
        return torch.load(path)

    return fetch
