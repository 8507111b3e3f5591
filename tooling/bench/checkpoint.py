"""How fast checkpoints are written and read, against plain safetensors of the same bytes, and what memory they take.

    hatch run bench-checkpoint

A training state (weights and AdamW's moments, fp32) as `dcp`, in turn and in the background, and a model's weights
as `hf`, beside `save_file`, and beside `load_file` that leaves what resuming leaves: weights in the parameters, which
are there, and moments in new memory. torch has one thread on both sides, which are
repeated by turns; the median of each counts. Files are in the page cache: a slower disk hides differences. Exits with 1
when saving, or loading `dcp`, is below its bar.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from records import Figure, Measurement
from report import Report, add_json_option
from safetensors.torch import load_file, save_file
from torch import Tensor

from archon_core import assemble, parse_layout
from archon_core.contracts.engine_config import EngineConfig
from archon_core.ranks.ranks import Ranks
from archon_engine.checkpoint.dcp import TrainingState, load_training_state
from archon_engine.checkpoint.parts import HostCopies
from archon_engine.checkpoint.publication import publish_folder
from archon_engine.checkpoint.seal import SEAL

BAR = 0.8
PLAIN = "plain.safetensors"
MODEL = {
    "model_type": "qwen3",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 16384,
    "tie_word_embeddings": True,
}


class Bench:
    """An engine, and optimizer state as AdamW has it.

    Args:
        folder: where to write.
        rounds: repetitions.
        report: gets the ratios.
    """

    def __init__(self, folder: Path, rounds: int, report: Report) -> None:
        self.report = report
        self.folder = folder
        self.rounds = rounds
        self.engine = assemble(
            EngineConfig(model_config=MODEL, dtype="float32", optimizer=None),
            role="actor",
            layout=parse_layout("archon:d1"),
            seed=1,
            total_steps=None,
        )
        self.engine.initialize()
        self.weights = {name: parameter.detach() for name, parameter in self.engine.parameters.items()}
        moments = {
            name: {"step": torch.tensor(1.0), "exp_avg": weight / 2, "exp_avg_sq": weight / 3}
            for name, weight in self.weights.items()
        }
        training = TrainingState.of(self.engine.parameters, moments, {"version": 1}, {})
        self.training = training
        self.state = {part.name: part.values() for part in training.parts}
        self.kept: object = None

    def compare(
        self,
        label: str,
        ours: Callable[[], object],
        plain: Callable[[], object],
        size: int,
        *,
        written: str = "",
        bar: float | None = None,
    ) -> None:
        """Report the ratio of both speeds.

        Args:
            bar: least ratio.
            written: the folder that ``ours`` makes; it and the plain file are removed before each measurement.
        """
        runs: dict[str, list[tuple[float, float]]] = {"ours": [], "plain": []}
        for number in range(self.rounds):
            pairs = [("ours", ours), ("plain", plain)]
            for name, work in pairs if number % 2 else reversed(pairs):  # neither always comes after the other
                if written:
                    self.remove(written)
                began, worked = time.perf_counter(), time.process_time()
                work()
                runs[name].append((time.perf_counter() - began, time.process_time() - worked))
        (our_time, our_work), (time_, work_) = (
            map(statistics.median, zip(*kept, strict=True)) for kept in runs.values()
        )
        self.report.add(
            Measurement(
                label,
                time_ / our_time,
                "higher",
                Figure(size / our_time / 1e9, "GB/s"),
                Figure(size / time_ / 1e9, "GB/s"),
                "plain safetensors",
                self.rounds,
                bar=bar,
                details={"processor seconds": round(our_work, 2), "processor seconds, plain": round(work_, 2)},
            )
        )

    def remove(self, name: str) -> None:
        """Remove a folder, and what plain safetensors wrote."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / PLAIN).unlink(missing_ok=True)

    def save_plain(self, tensors: dict[str, Tensor], *, flushed: bool = False) -> None:
        """What a user without an engine would do."""
        file = self.folder / PLAIN
        save_file(tensors, file)
        if flushed:
            with file.open("rb") as written:
                os.fsync(written.fileno())

    def load_plain(self, tensors: dict[str, Tensor]) -> None:
        """The same."""
        self.kept = kept = []
        for name, value in load_file(self.folder / PLAIN).items():
            if name.startswith("optimizer."):
                kept.append(value.clone())
            else:
                tensors[name].copy_(value)

    def save_state(self) -> None:
        """What an engine does for ``dcp``."""
        self.training.write(self.folder / "dcp", Ranks())

    def load_state(self) -> None:
        """The same."""
        self.kept = None
        self.kept = load_training_state(self.folder / "dcp", self.engine.parameters)

    def save_torch(self) -> None:
        """The same state by ``torch.distributed.checkpoint`` as it comes."""
        writer = dcp.FileSystemWriter(self.folder / "torch", sync_files=False)
        dcp.save(self.state, storage_writer=writer, no_dist=True)

    def load_torch(self) -> None:
        """The same, with new memory for moments."""
        self.kept = None
        self.kept = tensors = {
            name: torch.empty_like(value) if name.startswith("optimizer.") else value
            for name, value in self.state.items()
        }
        dcp.load(tensors, checkpoint_id=self.folder / "torch", no_dist=True)

    def publish(self) -> None:
        """A checkpoint as a run writes it: forced to disk, then renamed."""
        with publish_folder(self.folder / "published") as folder:
            self.training.write(folder, Ranks())


def measure(bench: Bench) -> None:
    """Measure everything."""
    engine, state, weights = bench.engine, bench.state, bench.weights
    of_state, of_weights = (sum(tensor.nbytes for tensor in tensors.values()) for tensors in (state, weights))
    print(f"training state {of_state / 2**20:.0f} MiB in {len(state)} tensors; weights {of_weights / 2**20:.0f} MiB\n")

    def save_hf() -> None:
        engine.save(bench.folder / "hf", "hf")

    def load_hf() -> None:
        engine.load(bench.folder / "hf", "hf")

    def plain(tensors: dict[str, Tensor], **options: bool) -> Callable[[], None]:
        return lambda: bench.save_plain(tensors, **options)

    def load_plain(tensors: dict[str, Tensor]) -> Callable[[], None]:
        return lambda: bench.load_plain(tensors)

    def there(ours: Callable[[], None], tensors: dict[str, Tensor], written: str) -> None:
        bench.remove(written)
        ours()
        bench.save_plain(tensors)

    bench.compare("save dcp", bench.save_state, plain(state), of_state, written="dcp", bar=BAR)
    there(bench.save_state, state, "dcp")
    bench.compare("load dcp, all bytes checked", bench.load_state, load_plain(state), of_state, bar=BAR)
    bench.compare("save dcp, forced to disk", bench.publish, plain(state, flushed=True), of_state, written="published")
    bench.compare("save, torch's own writer", bench.save_torch, plain(state), of_state, written="torch")
    there(bench.save_torch, state, "torch")
    bench.compare("load, torch's own reader", bench.load_torch, load_plain(state), of_state)
    bench.compare("save hf", save_hf, plain(weights), of_weights, written="hf", bar=BAR)
    there(save_hf, weights, "hf")
    bench.compare("load hf, all bytes checked", load_hf, load_plain(weights), of_weights)
    (bench.folder / "hf" / SEAL).unlink()
    bench.compare("load hf, as from the hub", load_hf, load_plain(weights), of_weights)
    _measure_background(bench, of_state)
    print("\nmemory beyond the engine's, at most:")
    for name, work in (("dcp", bench.save_state), ("hf", save_hf)):
        bench.remove(name)
        print(f"  save {name:14s} {_memory_of(work) / 2**20:6.0f} MiB")
    print(f"  background       {of_state / 2**20:8.0f} MiB, kept for the next time")
    print(f"  (the largest tensor: {max(tensor.nbytes for tensor in state.values()) / 2**20:.0f} MiB)")


def _measure_background(bench: Bench, size: int) -> None:
    copies, waiting, whole = HostCopies(), [], []
    for _ in range(bench.rounds):
        bench.remove("staged")
        began = time.perf_counter()
        staged = replace(bench.training, parts=copies.of(bench.training.parts))
        waiting.append(time.perf_counter() - began)
        staged.write(bench.folder / "staged", Ranks())
        whole.append(time.perf_counter() - began)
    waits, lasts = statistics.median(waiting), statistics.median(whole)
    print(f"\nin the background: training waits for a copy at {size / waits / 1e9:.1f} GB/s")
    bench.report.add(
        Measurement(
            "in the background, training waits",
            waits / lasts,
            "lower",
            Figure(1e3 * waits, "ms"),
            Figure(1e3 * lasts, "ms"),
            "the whole of saving",
            bench.rounds,
        )
    )


def _memory_of(work: Callable[[], object]) -> int:
    """Bytes by which the process's own memory rises at most; mapped files do not count."""
    before, sizes, ended = _own_memory(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.001):
            sizes.append(_own_memory() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    ended.set()
    watcher.join()
    return max(sizes)


def _own_memory() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary one by default")
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("checkpoint", options.json)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(Bench(Path(folder), options.rounds, report))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
