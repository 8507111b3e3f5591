"""How fast weights are published, against what the transport could do at best, and how much memory gathering holds.

    hatch run bench-publish

One trainer process and one receiving process, which stores the weights and computes checksums as a server does.

- `shm`: the trainer's copy of a bucket into a warm slot, against `copy_` of the same tensors into warm memory.
- every transport: whole publications, checksums on both ends included.
- `distributed`: buckets until the receiver has acknowledged their checksums, against gloo's `send` of the same bytes to
  the same process, acknowledged too. What a server does with the tensors is not part of it.
- gathering: the peak of resident memory on rank 0 of two ranks, beside its shards, in buckets.

Alternatives are repeated by turns; the best of each counts. torch has one thread. Exits with 1 below a bar.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from archon_core import assemble, parse_layout
from archon_core.contracts.engine_config import EngineConfig
from archon_core.contracts.serving import TransportContext, WeightBucket
from archon_core.errors import ServerError
from archon_core.ranks.ranks import DataRanks
from archon_core.receiving.checksum import bytes_of, checksum_of
from archon_core.receiving.elastic_group import RECEIVER, SENDER, join_group, receive, send
from archon_core.receiving.memory_store import MemoryStore
from archon_core.receiving.updates import WeightUpdates
from archon_core.serving.manifest import (
    TensorEntry,
    WeightManifest,
    offsets_of,
    plan_buckets,
    size_of_bucket,
)
from archon_core.serving.record import ServerCapabilities, ServerRecord, ServerState
from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan
from archon_rollout.plugin import archon_weight_transports
from archon_rollout.publication.publisher import Publisher, PublisherOptions
from archon_testing.worlds import run_world

BARS = {"shm": 0.8, "distributed": 0.9}
MOST_BUCKETS = 2.0
SPECS = {spec.name: spec for spec in archon_weight_transports()}
RECORD = ServerRecord("127.0.0.1:1", "bench", "bench")


class BenchStore(MemoryStore):
    """A store that keeps the weights, or leaves that out."""

    keeps = True

    @property
    def reads_back(self) -> bool:
        return self.keeps

    def put(self, name: str, values: torch.Tensor) -> None:
        if self.keeps:
            super().put(name, values)


def run_receiver(pipe: Any) -> None:
    """The receiving process: answers calls until the pipe closes."""
    torch.set_num_threads(1)
    store = BenchStore()
    updates = WeightUpdates(
        store,
        incarnation=RECORD.incarnation,
        version=0,
        receiver_of=lambda name: SPECS[name].load_part("receiver")(timeout=60.0),
    )
    group, buffer = None, torch.empty(0, dtype=torch.uint8)
    while True:
        try:
            verb, value = pipe.recv()
        except EOFError:
            return
        answer: Any = None
        try:
            if verb == "join":
                group = join_group(*value, RECEIVER, timeout=60.0)
            elif verb == "raw":
                if buffer.numel() < value:
                    buffer = torch.zeros(value, dtype=torch.uint8)
                for _ in receive(group, buffer[:value], timeout=60.0):
                    pass
            elif verb == "keep":
                store.keeps = value
            elif verb == "state":
                answer = ServerState(RECORD.incarnation, updates.version, False, updates.prepared, updates.updating)
            else:
                answer = getattr(updates, verb)(value)
        except ServerError as error:
            answer = error
        pipe.send(answer)


class PipeDriver:
    """Calls the receiving process; implements ``contracts.serving.ServerDriver`` as far as publication uses it."""

    capabilities = ServerCapabilities((*SPECS,), ("keep",), staged=True, checksums=True)

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=run_receiver, args=(other,), daemon=True)
        self._process.start()
        self._lock = threading.Lock()

    def call(self, verb: str, value: Any = None) -> Any:
        with self._lock:
            self._pipe.send((verb, value))
            answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def state(self, server: ServerRecord, *, timeout: float) -> ServerState:
        return self.call("state")

    def begin_update(self, server: ServerRecord, plan: UpdatePlan, *, timeout: float) -> None:
        self.call("begin", plan)

    def receive_bucket(self, server: ServerRecord, notice: BucketNotice, *, timeout: float) -> Receipt:
        return self.call("receive", notice)

    def verify_update(self, server: ServerRecord, manifest: WeightManifest, *, timeout: float) -> Receipt:
        return self.call("verify", manifest)

    def commit_update(self, server: ServerRecord, version: int, *, timeout: float) -> None:
        self.call("commit", version)

    def abort_update(self, server: ServerRecord, version: int, *, timeout: float) -> None:
        self.call("abort", version)

    def close(self) -> None:
        self._pipe.close()
        self._process.join(5)
        self._process.kill()


class GatheredWeights:
    """An engine whose weights are gathered already, so that transports alone are measured."""

    data_ranks = DataRanks()

    def __init__(self, n_bytes: int, max_bytes: int) -> None:
        self.version = 0
        self.manifest = WeightManifest(
            0, tuple(TensorEntry(f"layers.{i}.weight", "float32", (1024, 1024)) for i in range(n_bytes // 2**22))
        )
        self.buckets = []
        for index, entries in enumerate(plan_buckets(self.manifest.tensors, max_bytes)):
            content = torch.rand(size_of_bucket(entries) // 4).view(torch.uint8)
            tensors = {
                entry.name: content[offset : offset + entry.n_bytes].view(torch.float32).view(entry.shape)
                for entry, offset in zip(entries, offsets_of(entries), strict=True)
            }
            self.buckets.append((WeightBucket(index, tensors, content), entries))

    def weight_manifest(self, dtype: str | None = None) -> WeightManifest:
        return WeightManifest(self.version, self.manifest.tensors)

    def weight_buckets(self, max_bytes: int, dtype: str | None = None) -> Any:
        return (bucket for bucket, _ in self.buckets)

    def notices(self) -> list[tuple[WeightBucket, BucketNotice]]:
        """Buckets with complete notices, so that checksums are not part of a measurement."""
        found = []
        for bucket, entries in self.buckets:
            with_checksums = tuple(
                TensorEntry(e.name, e.dtype, e.shape, checksum_of(bytes_of(bucket.tensors[e.name]))) for e in entries
            )
            notice = BucketNotice(
                self.version, bucket.index, with_checksums, offsets_of(entries), size_of_bucket(entries)
            )
            found.append((bucket, notice))
        return found


def best_of(rounds: int, *works: Callable[[], object]) -> list[float]:
    """The least time of each, repeated by turns."""
    times: list[list[float]] = [[] for _ in works]
    for number in range(rounds):
        order = list(zip(works, times, strict=True))
        for work, kept in order if number % 2 else reversed(order):
            start = time.perf_counter()
            work()
            kept.append(time.perf_counter() - start)
    return [min(kept) for kept in times]


def shared_memory(engine: GatheredWeights, driver: PipeDriver, rounds: int, bucket_bytes: int) -> float:
    transport = SPECS["shm"].load()(TransportContext(driver, "bench", bucket_bytes=bucket_bytes))
    transport.prepare(engine.version, engine.weight_manifest(), [RECORD])
    notices = engine.notices()
    warm = [torch.zeros_like(bucket.content) for bucket, _ in notices[:2]]

    def place() -> None:
        for bucket, notice in notices:
            transport._place(bucket, notice)

    def memcpy() -> None:
        for bucket, notice in notices:
            warm[notice.index % 2][: notice.n_bytes].copy_(bucket.content)

    place()
    ours, plain = best_of(rounds, place, memcpy)
    transport.close()
    size = engine.manifest.n_bytes
    print(f"shm, copy into a slot:      {size / ours / 1e9:5.2f} GB/s, memcpy {size / plain / 1e9:5.2f} GB/s")
    return plain / ours


def distributed(engine: GatheredWeights, driver: PipeDriver, rounds: int, bucket_bytes: int) -> float:
    transport = SPECS["distributed"].load()(TransportContext(driver, "bench", bucket_bytes=bucket_bytes))
    port = transport._store.port
    joining = threading.Thread(target=driver.call, args=("join", ("127.0.0.1", port, "raw")))
    joining.start()
    group = join_group("127.0.0.1", port, "raw", SENDER, timeout=60.0)
    joining.join()

    def raw() -> None:
        for bucket, notice in engine.notices_kept:
            sending = threading.Thread(target=send, args=(group, bucket.content), kwargs={"timeout": 60.0})
            sending.start()
            driver.call("raw", notice.n_bytes)
            sending.join()

    def ours() -> None:
        for bucket, notice in engine.notices_kept:
            outcomes = transport.wait(transport.send(bucket, notice))
            assert not any(outcome.error for outcome in outcomes.values()), outcomes

    def ours_begun() -> float:
        outcomes = transport.prepare(engine.version, engine.weight_manifest(), [RECORD])
        assert not any(outcome.error for outcome in outcomes.values()), outcomes
        start = time.perf_counter()
        ours()
        return time.perf_counter() - start

    engine.notices_kept = engine.notices()
    driver.call("keep", False)
    ours_begun(), raw()
    times = [(ours_begun(), best_of(1, raw)[0]) for _ in range(rounds)]
    our_time, raw_time = (min(kept) for kept in zip(*times, strict=True))
    transport.close()
    driver.call("keep", True)
    size = engine.manifest.n_bytes
    print(f"distributed, acknowledged:  {size / our_time / 1e9:5.2f} GB/s, gloo   {size / raw_time / 1e9:5.2f} GB/s")
    return raw_time / our_time


def publications(engine: GatheredWeights, driver: PipeDriver, rounds: int, bucket_bytes: int) -> None:
    """Whole publications, with checksums on both ends."""
    with tempfile.TemporaryDirectory() as folder:
        for name, spec in SPECS.items():
            if name == "ipc":
                continue
            context = TransportContext(driver, "bench", folder=Path(folder), bucket_bytes=bucket_bytes)
            publisher = Publisher(engine, driver, spec.load()(context), PublisherOptions(bucket_bytes))
            results = []
            for _ in range(rounds):
                engine.version += 1
                results.append(publisher.publish([RECORD]))
                assert not results[-1].failed, results[-1]
            publisher.close()
            best = min(results, key=lambda result: sum(result.seconds.values()))
            print(f"{name}: {best.describe()}")


def peak_of_gathering(bucket_bytes: int) -> tuple[float, float]:
    """On a rank: the peak of resident memory while buckets are taken, beside what was resident before, in buckets."""
    model = {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 4096,
        "tie_word_embeddings": True,
    }
    engine = assemble(
        EngineConfig(model_config=model, dtype="float32", optimizer=None),
        role="actor",
        layout=parse_layout("archon:t2"),
        seed=1,
        total_steps=None,
    )
    engine.initialize()
    largest = max(map(size_of_bucket, plan_buckets(engine.weight_manifest().tensors, bucket_bytes)))
    for _ in engine.weight_buckets(2**16):  # whatever gloo and torch allocate once
        pass
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    for _ in engine.weight_buckets(bucket_bytes):
        pass
    return (_resident("VmHWM") - before) / largest, largest


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=512, help="size of all tensors")
    parser.add_argument("--bucket-mib", type=int, default=64, help="size of a bucket")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bucket_bytes = options.bucket_mib * 2**20
    ranks = run_world(peak_of_gathering, 2, (bucket_bytes // 2,))
    (peak, largest), (other, _) = ranks
    print(f"gathering, t2: rank 0 holds {peak:.2f} buckets of {largest / 2**20:.0f} MiB at most, rank 1 {other:.2f}")
    engine, driver = GatheredWeights(options.mib * 2**20, bucket_bytes), PipeDriver()
    ratios = {
        "shm": shared_memory(engine, driver, options.rounds, bucket_bytes),
        "distributed": distributed(engine, driver, options.rounds, bucket_bytes),
    }
    publications(engine, driver, max(3, options.rounds // 2), bucket_bytes)
    driver.close()
    for name, ratio in ratios.items():
        print(f"{name}: ratio {ratio:.2f} (bar: {BARS[name]})")
    # The system gives memory in pages, and gloo has buffers: a tenth of a bucket is allowed for.
    return int(peak > MOST_BUCKETS + 0.1 or any(ratio < BARS[name] for name, ratio in ratios.items()))


if __name__ == "__main__":
    sys.exit(main())
