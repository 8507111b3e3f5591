"""One optimizer step on sequences that share prefixes, with the prefixes computed once and with every sequence apart.

    hatch run bench-tree [--shape long-prompt|long-answer|groups|sessions] [--turns 5] [--json FILE]

Both are the Archon engine, without and with ``actor.enable_tree_training``, on the same weights and sequences in fp32.
The ideal ratio of their times is that of their tokens: for n samples of R tokens after a prompt of P, n(P + R) / (P +
nR). A session exports its conversation after every turn, each time with all turns before. Times are processor time,
taken by turns; the median of each counts. Memory is what a step needs beyond weights, gradients and optimizer state, in
a separate process.

Exits 1 when a ratio misses its bar, a share of the ideal one, or losses differ.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from records import Figure, Measurement
from report import Report, add_json_option
from torch import Tensor

THREADS = 1
BAR = 0.85
LOSS_TOLERANCE = 1e-5
MODEL = {
    "model_type": "qwen3",
    "vocab_size": 4096,
    "hidden_size": 384,
    "intermediate_size": 1152,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
}

Step = Callable[[], float]
"""Makes one optimizer step and returns its loss."""


@dataclass(frozen=True)
class Shape:
    """Sequences that share prefixes.

    Attributes:
        prompts: number of prompts.
        prompt: P, tokens of each.
        samples: n, answers to each.
        answer: R, tokens of each.
        turns: for sessions, how often an answer is continued by another one of R tokens and exported again.
    """

    prompts: int
    prompt: int
    samples: int
    answer: int
    turns: int = 1

    @property
    def lengths(self) -> list[int]:
        """Of the sequences of one prompt."""
        return [self.prompt + turn * self.answer for turn in range(1, self.turns + 1)] * self.samples

    @property
    def ideal(self) -> float:
        """The ratio of tokens."""
        return sum(self.lengths) / (self.prompt + self.samples * self.turns * self.answer)

    def sequences(self) -> list[Tensor]:
        """Random sequences of token ids, the same in every run."""
        generator = torch.Generator().manual_seed(1)

        def draw(n: int) -> Tensor:
            return torch.randint(0, MODEL["vocab_size"], (n,), generator=generator)

        found = []
        for _ in range(self.prompts):
            prompt = draw(self.prompt)
            for _ in range(self.samples):
                whole = torch.cat((prompt, draw(self.turns * self.answer)))
                found += [whole[:length] for length in self.lengths[: self.turns]]
        return found


SHAPES = {
    "long-prompt": Shape(prompts=1, prompt=512, samples=8, answer=128),
    "long-answer": Shape(prompts=1, prompt=128, samples=8, answer=256),
    "groups": Shape(prompts=4, prompt=256, samples=4, answer=64),
    "sessions": Shape(prompts=2, prompt=64, samples=1, answer=96, turns=8),
}


def engine_and_step(shape: Shape, *, shared: bool) -> tuple[Any, Step]:
    """The engine and its steps, with prefixes computed once or not."""
    from archon_core import assemble
    from archon_core.contracts.batch import Batch
    from archon_core.contracts.engine_config import OptimizerConfig
    from archon_engine.options.archon import ArchonEngineConfig
    from archon_testing.losses import NegativeLogLikelihood

    config = ArchonEngineConfig(
        model_config=dict(MODEL), dtype="float32", optimizer=OptimizerConfig(lr=1e-5), enable_tree_training=shared
    )
    engine = assemble(config, seed=0)
    engine.initialize()
    batch, loss = Batch.from_sequences(shape.sequences()), NegativeLogLikelihood()
    return engine, lambda: engine.train_batch(batch, loss).loss


def timed(step: Step) -> tuple[float, float]:
    """Processor seconds of a step, and its loss."""
    start = time.process_time()
    loss = step()
    return time.process_time() - start, loss


def peak_here(shape: Shape, *, shared: bool) -> int:
    """In a separate process: peak bytes that the first step adds, without gradients and optimizer state.

    Raises:
        OSError: there is no ``/proc`` whose peak could be set back.
    """
    engine, step = engine_and_step(shape, shared=shared)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the peak to what is resident now
    before = _resident("VmRSS")
    step()
    kept = 3 * sum(parameter.nbytes for parameter in engine.parameters.values())
    return _resident("VmHWM") - before - kept


def _resident(name: str) -> int:
    """A size of this process in bytes, by its name in ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def peak_of(name: str, *, shared: bool) -> int:
    """``peak_here`` of a process that is started for it."""
    command = [sys.executable, __file__, "--shape", name, "--peak", "shared" if shared else "apart"]
    return int(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def compare(name: str, turns: int, report: Report) -> None:
    """Measure one shape, and report the ratios of times and of memory."""
    shape = SHAPES[name]
    contestants = {kind: engine_and_step(shape, shared=kind == "shared")[1] for kind in ("apart", "shared")}
    first = {contestant: step() for contestant, step in contestants.items()}
    if not math.isclose(first["apart"], first["shared"], rel_tol=LOSS_TOLERANCE):
        report.fail(
            f"{name}: found a first loss of {first['shared']} with shared prefixes; apart, it is {first['apart']}"
        )
    times: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    for _ in range(turns):
        for contestant, step in contestants.items():
            times[contestant].append(timed(step)[0])
    apart, shared = (statistics.median(times[contestant]) for contestant in ("apart", "shared"))
    print(f"\n{name}: {shape.ideal:.2f} times as many tokens apart as shared, the median of {turns} turns")
    report.add(
        Measurement(
            f"{name}: share of the ideal time",
            apart / shared / shape.ideal,
            "higher",
            Figure(shared, "s"),
            Figure(apart, "s"),
            "every sequence apart",
            turns,
            bar=BAR,
            details={"times as fast": round(apart / shared, 2), "ideal": round(shape.ideal, 2)},
        )
    )
    peaks = {kind: peak_of(name, shared=kind == "shared") / 2**20 for kind in contestants}
    report.add(
        Measurement(
            f"{name}: memory of a step",
            peaks["apart"] / peaks["shared"],
            "higher",
            Figure(peaks["shared"], "MiB"),
            Figure(peaks["apart"], "MiB"),
            "every sequence apart",
            1,
            compared=False,
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 when every ratio reaches its bar, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="one of the shapes [all]")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--peak", choices=("apart", "shared"), help=argparse.SUPPRESS)
    add_json_option(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    if options.peak:
        [name] = options.shape
        print(json.dumps(peak_here(SHAPES[name], shared=options.peak == "shared")))
        return 0
    report = Report("tree", options.json)
    for name in options.shape or SHAPES:
        compare(name, options.turns, report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
