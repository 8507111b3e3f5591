"""How fast weights are published, against what the transport could do at best, and how much memory it takes.

    hatch run bench-publish

One trainer process and one receiving process, which stores the weights and computes checksums as a server does.

- `shm`: assembling a bucket in a warm slot, tensor by tensor, against `copy_` of the same bytes into warm memory.
- `distributed`: buckets until the receiver has acknowledged their checksums, against one gloo `send` per bucket to the
  same process, acknowledged too. What a server does with the tensors is not part of it.
- `commit`: the time in which a server that generates makes no token.
- every transport: whole publications, checksums on both ends included.
- memory: the peak on rank 0 of two tensor ranks during whole publications, beside its shards, in buckets.

Both sides of a ratio run one after the other, and the median over the pairs counts: other processes slow both down. The
more they do, the more pairs are measured. torch has one thread. Exits with 1 below a bar.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from publish_ends import RECORD, SPECS, DirectDriver, GatheredWeights, PipeDriver
from records import Figure, Measurement
from report import Report, add_json_option

from archon_core import assemble, parse_layout
from archon_core.contracts.engine_config import EngineConfig
from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_core.contracts.weight_transport import TransportContext
from archon_core.receiving.elastic_group import SENDER, join_group
from archon_core.serving.manifest import plan_buckets, size_of_bucket
from archon_core.serving.record import ServerState
from archon_rollout.publication.publisher import Publisher, PublisherOptions
from archon_rollout.server.commands import Commit, Submit
from archon_rollout.server.serving_loop import ServingLoop
from archon_rollout.server.weight_copies import EngineCopies, ServedWeights
from archon_testing.worlds import run_world

BARS = {"shm": 0.8, "distributed": 0.9}
AGAINST = {"shm": "copy_ of the same bytes", "distributed": "one gloo send per bucket, acknowledged"}
COMMIT_BAR_MS = 10.0
MOST_BUCKETS = 2.0
CERTAIN = 0.05
MOST_ROUNDS = 4
MODEL = {
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


def compare(name: str, n_bytes: int, rounds: int, ours: Callable[[], float], plain: Callable[[], float]) -> Measurement:
    """The median of plain / ours, in seconds, over at least ``rounds`` pairs, and more while it is uncertain."""
    ours(), plain()
    pairs: list[tuple[float, float]] = []
    while len(pairs) < rounds or (_uncertainty(pairs) > CERTAIN and len(pairs) < MOST_ROUNDS * rounds):
        # Once in each order, so that neither side always runs on what the other left in caches and queues.
        first, second, third, fourth = ours(), plain(), plain(), ours()
        pairs += [(first, second), (fourth, third)]
    speeds = [n_bytes / statistics.median(side) / 1e9 for side in zip(*pairs, strict=True)]
    ratio = statistics.median(second / first for first, second in pairs)
    return Measurement(
        name,
        ratio,
        "higher",
        Figure(speeds[0], "GB/s"),
        Figure(speeds[1], "GB/s"),
        AGAINST[name],
        len(pairs),
        bar=BARS[name],
        details={"+-": round(_uncertainty(pairs), 3)},
    )


def _uncertainty(pairs: list[tuple[float, float]]) -> float:
    """Half the width of the notch of a box plot: about the 95% interval of the median ratio."""
    lower, _, upper = statistics.quantiles(second / first for first, second in pairs)
    return 1.57 * (upper - lower) / len(pairs) ** 0.5


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """``work``, returning seconds."""

    def run() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return run


def shared_memory(engine: GatheredWeights, driver: PipeDriver, rounds: int, bucket_bytes: int) -> Measurement:
    transport = SPECS["shm"].load()(TransportContext(driver, "bench", bucket_bytes=bucket_bytes))
    transport.prepare(engine.version, engine.weight_manifest(), [RECORD])
    notices = engine.notices()
    warm = [torch.zeros_like(bucket.content) for bucket, _ in engine.buckets[:2]]

    def assemble_in_slots() -> None:
        for (bucket, entries), notice in zip(engine.buckets, notices, strict=True):
            transport._place(engine.copied(bucket, entries, transport.memory()), notice)

    def memcpy() -> None:
        for bucket, _ in engine.buckets:
            warm[bucket.index % 2][: bucket.content.numel()].copy_(bucket.content)

    size = engine.manifest.n_bytes
    found = compare("shm", size, rounds, timed(assemble_in_slots), timed(memcpy))
    transport.close()
    return found


def distributed(engine: GatheredWeights, driver: PipeDriver, rounds: int, bucket_bytes: int) -> Measurement:
    transport = SPECS["distributed"].load()(TransportContext(driver, "bench", bucket_bytes=bucket_bytes))
    port = transport._store.port
    joining = threading.Thread(target=driver.call, args=("join", ("127.0.0.1", port, "raw")))
    joining.start()
    group = join_group("127.0.0.1", port, "raw", SENDER, timeout=60.0)
    joining.join()
    notices = engine.notices()
    driver.call("keep", False)

    def raw() -> None:
        for bucket, _ in engine.buckets:
            work = group.send([bucket.content], 1, 0)
            driver.call("raw", bucket.content.numel())
            work.wait()

    def ours() -> None:
        for (bucket, _), notice in zip(engine.buckets, notices, strict=True):
            outcomes = transport.wait(transport.send(bucket, notice))
            assert not any(outcome.error for outcome in outcomes.values()), outcomes

    def ours_begun() -> float:
        outcomes = transport.prepare(engine.version, engine.weight_manifest(), [RECORD])
        assert not any(outcome.error for outcome in outcomes.values()), outcomes
        return timed(ours)()

    found = compare("distributed", engine.manifest.n_bytes, rounds, ours_begun, timed(raw))
    transport.close()
    driver.call("keep", True)
    return found


def make_engine(layout: str) -> Any:
    config = EngineConfig(model_config=MODEL, dtype="float32", optimizer=None)
    engine = assemble(config, role="actor", layout=parse_layout(layout), seed=1, total_steps=None)
    engine.initialize()
    return engine


class ServingDriver(DirectDriver):
    """Calls a server's logic in this process."""

    def __init__(self, weights: ServedWeights, serving: ServingLoop) -> None:
        self.weights, self.serving = weights, serving

    def call(self, verb: str, value: Any = None) -> Any:
        if verb == "commit":
            self.serving.run([Commit(value)])
        elif verb == "begin":
            self.weights.begin(value)
        elif verb == "state":
            return ServerState(RECORD.incarnation, self.weights.version, False)
        else:
            return getattr(self.weights.updates, verb)(value)
        return None


def commit_pause(versions: int) -> Measurement:
    """Milliseconds of the median switch of a server that generates."""
    trainer = make_engine("archon:d1")
    weights = ServedWeights(
        EngineCopies(make_engine("archon:d1"), lambda: make_engine("archon:d1")),
        version=0,
        incarnation=RECORD.incarnation,
    )
    serving = ServingLoop(weights, max_rows=8)
    config = GenerationConfig(n_samples=8, max_new_tokens=512, ignore_eos=True)
    serving.run([Submit(0, GenerationRequest((1, 2, 3), config, tuple(range(8))))])
    driver = ServingDriver(weights, serving)
    publisher = Publisher(trainer, driver, SPECS["shm"].load()(TransportContext(driver, "bench")), PublisherOptions())
    found = []
    for _ in range(versions):
        trainer._version += 1  # the weights may stay; the publication is the same
        serving.run([])
        publisher_result = publisher.publish([RECORD])
        assert not publisher_result.failed, publisher_result
        found.append(1000 * serving.switch_seconds)
    publisher.close()
    serving.close()
    return _limited(
        "commit, time without a token",
        Figure(statistics.median(found), "ms"),
        COMMIT_BAR_MS,
        repetitions=versions,
        details={"slowest ms": round(max(found), 2)},
    )


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


def peak_of_publishing(transport: str, bucket_bytes: int) -> tuple[float, float]:
    """On a rank: the peak of resident memory during a publication, beside what was resident before, in buckets."""
    engine = make_engine("archon:t2")
    is_first = engine.data_ranks.everyone.is_first
    driver = PipeDriver() if is_first else None
    largest = max(map(size_of_bucket, plan_buckets(engine.weight_manifest().tensors, bucket_bytes)))
    before = 0
    for size in (2**16, bucket_bytes):  # small buckets first: whatever gloo and torch allocate once
        sender = None
        if is_first:
            sender = SPECS[transport].load()(TransportContext(driver, "bench", bucket_bytes=size))
        publisher = Publisher(engine, driver, sender, PublisherOptions(size))
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
        engine._version += 1
        assert not publisher.publish([RECORD]).failed
        peak = _resident("VmHWM")
        publisher.close()
    if driver is not None:
        driver.close()
    return (peak - before) / largest, largest


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=256, help="size of all tensors")
    parser.add_argument("--bucket-mib", type=int, default=64, help="size of a bucket")
    parser.add_argument("--rounds", type=int, default=25, help="pairs of measurements")
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bucket_bytes = options.bucket_mib * 2**20
    report = Report("publish", options.json)
    for transport in ("shm", "distributed"):
        (peak, largest), (other, _) = run_world(peak_of_publishing, 2, (transport, bucket_bytes // 2))
        # The system gives memory in pages, and gloo has buffers: a tenth of a bucket is allowed for.
        report.add(
            _limited(
                f"peak on t2 over {transport}",
                Figure(peak, "buckets"),
                MOST_BUCKETS + 0.1,
                repetitions=1,
                details={"bucket MiB": round(largest / 2**20, 1), "buckets on rank 1": round(other, 2)},
            )
        )
    engine, driver = GatheredWeights(options.mib * 2**20, bucket_bytes), PipeDriver()
    report.add(shared_memory(engine, driver, options.rounds, bucket_bytes))
    report.add(distributed(engine, driver, options.rounds, bucket_bytes))
    report.add(commit_pause(min(9, options.rounds)))
    publications(engine, driver, 3, bucket_bytes)
    driver.close()
    return report.finish()


def _limited(name: str, found: Figure, limit: float, *, repetitions: int, details: dict[str, float]) -> Measurement:
    """A figure against its limit."""
    ratio, allowed = found.value / limit, Figure(limit, found.unit)
    return Measurement(
        name, ratio, "lower", found, allowed, "limit", repetitions, bar=1.0, absolute=True, details=details
    )


if __name__ == "__main__":
    sys.exit(main())
