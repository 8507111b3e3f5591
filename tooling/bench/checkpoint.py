"""How fast checkpoints are written and read, against plain safetensors of the same bytes, and what memory they take.

    hatch run bench-checkpoint

The engine's training state (weights and AdamW's moments, fp32) as `dcp`, in turn and in the background, and its weights
as `hf`, beside `save_file`, and beside `load_file` that leaves what resuming leaves: weights in the parameters, which
are there, and moments in new memory. Both sides have one thread, as ranks that share a machine's cores have, and are
repeated by turns; the best of each counts, since a virtual machine may take seconds for memory that it has not touched
for a while. Files are in the page cache: a slower disk hides differences. Exits with 1 when dcp is below its bar.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor

from archon_core import parse_layout
from archon_core.checkpoint.seal import SEAL
from archon_core.config.schema import EngineConfig, OptimizerConfig
from archon_core.data.batch import Batch
from archon_core.distributed.ranks import Ranks
from archon_core.engine.archon import ArchonEngine
from archon_core.run.publication import publish_folder
from archon_testing.losses import NegativeLogLikelihood

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
    """An engine after its first step, so that there is optimizer state, and plain copies of what it saves.

    Args:
        folder: where to write.
        rounds: repetitions.
    """

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder = folder
        self.rounds = rounds
        self.engine = ArchonEngine(
            EngineConfig(model_config=MODEL, dtype="float32", optimizer=OptimizerConfig(lr=1e-5)),
            role="actor",
            layout=parse_layout("archon:d1"),
            seed=1,
            total_steps=None,
        )
        self.engine.initialize()
        self.engine.train_batch(Batch.from_sequences([torch.arange(4)]), NegativeLogLikelihood())
        state = self.engine.stage()
        self.state = {part.name: part.values() for part in state.parts}
        self.kept: dict[str, Tensor] = {}
        self.weights = {name: parameter.detach() for name, parameter in self.engine.parameters.items()}

    def compare(
        self, label: str, ours: Callable[[], object], plain: Callable[[], object], size: int, *, written: str = ""
    ) -> float:
        """Print both speeds; their ratio.

        Args:
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
        (our_time, our_work), (time_, work_) = (map(min, zip(*kept, strict=True)) for kept in runs.values())
        ratio = time_ / our_time
        print(
            f"{label:28s} {size / our_time / 1e9:6.2f} GB/s   plain {size / time_ / 1e9:6.2f} GB/s   "
            f"ratio {ratio:.2f}   (processor time {our_work:.2f} s and {work_:.2f} s)",
            flush=True,
        )
        return ratio

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
        self.kept = {}
        for name, value in load_file(self.folder / PLAIN).items():
            if name.startswith("optimizer."):
                self.kept[name] = value.clone()
            else:
                tensors[name].copy_(value)

    def save_torch(self) -> None:
        """The same state by ``torch.distributed.checkpoint`` as it comes."""
        writer = dcp.FileSystemWriter(self.folder / "torch", sync_files=False)
        dcp.save(self.state, storage_writer=writer, no_dist=True)

    def load_torch(self) -> None:
        """The same, with new memory for moments."""
        self.kept = {
            name: torch.empty_like(value) if name.startswith("optimizer.") else value
            for name, value in self.state.items()
        }
        dcp.load(self.kept, checkpoint_id=self.folder / "torch", no_dist=True)

    def publish(self) -> None:
        """A checkpoint as a run writes it: forced to disk, then renamed."""
        with publish_folder(self.folder / "published") as folder:
            self.engine.save(folder, "dcp")


def measure(bench: Bench) -> dict[str, float]:
    """Print everything; the ratios that have a bar."""
    engine, state, weights = bench.engine, bench.state, bench.weights
    of_state, of_weights = (sum(tensor.nbytes for tensor in tensors.values()) for tensors in (state, weights))
    print(f"training state {of_state / 2**20:.0f} MiB in {len(state)} tensors, weights {of_weights / 2**20:.0f} MiB\n")
    ratios = {}

    def save(format: str) -> Callable[[], None]:
        return lambda: engine.save(bench.folder / format, format)

    def load(format: str) -> Callable[[], None]:
        return lambda: engine.load(bench.folder / format, format)

    def plain(tensors: dict[str, Tensor], **options: bool) -> Callable[[], None]:
        return lambda: bench.save_plain(tensors, **options)

    ratios["dcp save"] = bench.compare("save dcp", save("dcp"), plain(state), of_state, written="dcp")
    _both(bench, save("dcp"), plain(state), "dcp")
    ratios["dcp load"] = bench.compare(
        "load dcp, all bytes checked", load("dcp"), lambda: bench.load_plain(state), of_state
    )
    bench.compare("save dcp, forced to disk", bench.publish, plain(state, flushed=True), of_state, written="published")
    bench.compare("save, torch's own writer", bench.save_torch, plain(state), of_state, written="torch")
    _both(bench, bench.save_torch, plain(state), "torch")
    bench.compare("load, torch's own reader", bench.load_torch, lambda: bench.load_plain(state), of_state)
    bench.compare("save hf", save("hf"), plain(weights), of_weights, written="hf")
    _both(bench, save("hf"), plain(weights), "hf")
    bench.compare("load hf, all bytes checked", load("hf"), lambda: bench.load_plain(weights), of_weights)
    (bench.folder / "hf" / SEAL).unlink()
    bench.compare("load hf, as from the hub", load("hf"), lambda: bench.load_plain(weights), of_weights)
    blocking, whole = [], []
    for _ in range(bench.rounds):
        bench.remove("staged")
        began = time.perf_counter()
        staged = engine.stage()
        blocking.append(time.perf_counter() - began)
        staged.write(bench.folder / "staged", Ranks())
        whole.append(time.perf_counter() - began)
    print(
        f"\nin the background: training waits {min(blocking) * 1e3:.0f} ms "
        f"({of_state / min(blocking) / 1e9:.1f} GB/s) of {min(whole) * 1e3:.0f} ms"
    )
    print("\nmemory beyond the engine's, at most:")
    for format in ("dcp", "hf"):
        bench.remove(format)
        print(f"  save {format:14s} {_memory_of(save(format)) / 2**20:6.0f} MiB")
    largest = max(tensor.nbytes for tensor in state.values())
    print(f"  background       {of_state / 2**20:6.0f} MiB, kept for the next time")
    print(f"  (the largest tensor: {largest / 2**20:.0f} MiB)")
    return ratios


def _both(bench: Bench, ours: Callable[[], None], plain: Callable[[], None], written: str) -> None:
    """Have both there, to be read."""
    bench.remove(written)
    ours()
    plain()


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
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary one by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        ratios = measure(Bench(Path(folder), options.rounds))
    missed = [f"{name} {ratio:.2f}" for name, ratio in ratios.items() if ratio < BAR]
    if missed:
        print(f"\nbelow the bar of {BAR}: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
