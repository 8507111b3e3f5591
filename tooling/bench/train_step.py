"""One optimizer step of the Archon engine against transformers' Qwen3, and against the matrix products of a step alone.

    hatch run bench-train-step [--shape large|small] [--turns 5] [--json FILE]

Both train the same weights on the same tokens in fp32, with torch's AdamW and a clipped gradient norm; their first
losses must agree. transformers gets micro-batches that are padded to their longest sequence, in three ways: in the
order of the batch, of the size that is fastest here; sorted by length, likewise; and one sequence at a time, without
padding. Archon packs sequences without padding. The floor is the time of the products of all linear layers and of the
head, forward and backward, for the same tokens.

Contestants take turns; the median of each counts. Exits 1 when a ratio misses its bar.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from records import Figure, Measurement
from report import Report, add_json_option
from torch import Tensor

THREADS = 2
LEARNING_RATE = 1e-5
LOSS_TOLERANCE = 1e-4
"""Of the first losses, relative: sums in fp32."""
CLIP_NORM = 1.0
SIZES = (2, 4, 8, 16, 32, 64)
"""Micro-batch sizes among which transformers gets the fastest."""
CLEARLY_SLOWER = 1.15
SEARCH_STRIDE = 4
"""The search for that size runs every fourth micro-batch, and compares times per token."""

Step = Callable[[], float]
"""Makes one optimizer step and returns its loss."""


@dataclass(frozen=True)
class Shape:
    """A model, a batch, and the bars of the ratios.

    Attributes:
        model: entries of a Qwen3 configuration.
        lengths: of the sequences.
        bars: contestant -> the least ratio of its time to Archon's.
    """

    model: Mapping[str, Any]
    lengths: tuple[int, ...]
    bars: Mapping[str, float]


def lognormal_lengths(n: int, median: float, low: int, high: int) -> tuple[int, ...]:
    """Lengths with a long tail; the same in every run."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.exp(math.log(median) + torch.randn(n, generator=generator, dtype=torch.float64) * 0.8)
    return tuple(int(length) for length in drawn.clamp(low, high))


def model_entries(hidden: int, layers: int, intermediate: int, vocabulary: int, heads: int) -> dict[str, Any]:
    """Entries of a Qwen3 with half as many key heads as query heads."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": hidden // heads,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    }


FLOOR = "products alone"
PADDED = "transformers, padded"
SORTED = "transformers, sorted by length"
SINGLE = "transformers, one by one"

SHAPES = {
    "large": Shape(
        model_entries(512, 8, 1536, 8192, 8),
        lognormal_lengths(64, 96, 16, 512),
        {PADDED: 1.9, SORTED: 1.25, SINGLE: 1.3, FLOOR: 0.92},
    ),
    "small": Shape(model_entries(256, 4, 768, 1024, 8), (66,) * 128, {FLOOR: 0.85}),
}


def batch_of(shape: Shape) -> list[Tensor]:
    """Random sequences of token ids, the same in every run."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, shape.model["vocab_size"], (n,), generator=generator) for n in shape.lengths]


def with_archon(folder: str, sequences: Sequence[Tensor]) -> Step:
    """Steps of the engine with default options."""
    from archon_core import assemble
    from archon_core.contracts.batch import Batch
    from archon_core.contracts.engine_config import OptimizerConfig
    from archon_engine.options.archon import ArchonEngineConfig
    from archon_testing.losses import NegativeLogLikelihood

    optimizer = OptimizerConfig(type="adamw", lr=LEARNING_RATE, gradient_clipping=CLIP_NORM, weight_decay=0.0)
    engine = assemble(ArchonEngineConfig(path=folder, dtype="float32", optimizer=optimizer), seed=0)
    engine.initialize()
    batch, loss = Batch.from_sequences(list(sequences)), NegativeLogLikelihood()
    # That loss is a mean over tokens; the last token of a sequence has no target.
    factor = batch.n_tokens / (batch.n_tokens - len(batch))
    return lambda: engine.train_batch(batch, loss).loss * factor


class Rival:
    """transformers' model with torch's AdamW.

    Args:
        folder: checkpoint.
        sequences: of the batch.
    """

    def __init__(self, folder: str, sequences: Sequence[Tensor]) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        self._sequences = sequences
        self._n_targets = sum(len(one) - 1 for one in sequences)

    def step(self, size: int, *, is_sorted: bool = False) -> Step:
        """Steps with micro-batches of ``size`` sequences."""
        return self._step_over(self._micro_batches(size, is_sorted=is_sorted))

    def _micro_batches(self, size: int, *, is_sorted: bool) -> list[Sequence[Tensor]]:
        order = sorted(self._sequences, key=len) if is_sorted else self._sequences
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _step_over(self, micro_batches: Sequence[Sequence[Tensor]]) -> Step:
        parts = [_padded(sequences) for sequences in micro_batches]

        def step() -> float:
            self._optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for part in parts:
                loss = self._loss(**part)
                loss.backward()
                total += float(loss.detach())
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP_NORM)
            self._optimizer.step()
            return total

        return step

    def fastest_size(self, *, is_sorted: bool) -> int:
        """The micro-batch size that is fastest here. Its search changes the weights.

        Times fall and then rise with the size: larger sizes than the first one that is clearly slower are not tried.
        """
        times: dict[int, float] = {}
        for size in SIZES:
            sample = self._micro_batches(size, is_sorted=is_sorted)[::SEARCH_STRIDE]
            step, n_tokens = self._step_over(sample), sum(len(one) for part in sample for one in part)
            times[size] = min(timed(step)[0] for _ in range(2 if size == SIZES[0] else 1)) / n_tokens
            if times[size] > CLEARLY_SLOWER * min(times.values()):
                break
        return min(times, key=times.__getitem__)

    def _loss(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        targets = ids[:, 1:] if mask is None else ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        summed = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        return summed / self._n_targets


def _padded(sequences: Sequence[Tensor]) -> dict[str, Tensor | None]:
    """Sequences as one matrix; without a mask if all have one length."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, one in enumerate(sequences):
        ids[row, : len(one)] = one
        mask[row, : len(one)] = 1
    return {"ids": ids, "mask": None if mask.all() else mask}


def products_alone(shape: Shape) -> Step:
    """The products of every linear layer and of the head for all tokens, forward and for both gradients."""
    model, tokens = shape.model, sum(shape.lengths)
    hidden, inner, head_dim = model["hidden_size"], model["intermediate_size"], model["head_dim"]
    queries, keys = model["num_attention_heads"] * head_dim, model["num_key_value_heads"] * head_dim
    layer = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    layer += [(hidden, inner), (hidden, inner), (inner, hidden)]
    sizes = layer * model["num_hidden_layers"] + [(hidden, model["vocab_size"])]
    made = {}
    for fan_in, fan_out in set(sizes):
        made[fan_in, fan_out] = (
            torch.randn(tokens, fan_in),
            torch.randn(fan_out, fan_in),
            torch.randn(tokens, fan_out),
            torch.empty(tokens, fan_out),
            torch.empty(tokens, fan_in),
            torch.empty(fan_out, fan_in),
        )

    def step() -> float:
        for size in sizes:
            x, weight, gradient, out, of_input, of_weight = made[size]
            torch.mm(x, weight.T, out=out)
            torch.mm(gradient, weight, out=of_input)
            torch.mm(gradient.T, x, out=of_weight)
        return 0.0

    return step


def timed(step: Step) -> tuple[float, float]:
    """Seconds of a step, and its loss."""
    start = time.perf_counter()
    loss = step()
    return time.perf_counter() - start, loss


def compare(name: str, turns: int, report: Report) -> None:
    """Measure one shape, and report the ratio of every contestant's time to Archon's."""
    shape = SHAPES[name]
    sequences = batch_of(shape)
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, shape.model)
        contestants: dict[str, Step] = {"archon": with_archon(folder, sequences), FLOOR: products_alone(shape)}
        ways = (PADDED, SORTED, SINGLE) if len(set(shape.lengths)) > 1 else (PADDED,)
        sizes = {}
        for way in ways:
            searching = Rival(folder, sequences)
            sizes[way] = 1 if way == SINGLE else searching.fastest_size(is_sorted=way == SORTED)
        for way, size in sizes.items():
            contestants[way] = Rival(folder, sequences).step(size, is_sorted=way == SORTED)
        first = {contestant: step() for contestant, step in contestants.items()}
        for way in ways:
            if not math.isclose(first[way], first["archon"], rel_tol=LOSS_TOLERANCE):
                raise SystemExit(f"{way}: found a first loss of {first[way]}; Archon's is {first['archon']}")
        times: dict[str, list[float]] = {contestant: [] for contestant in contestants}
        for _ in range(turns):
            for contestant, step in contestants.items():
                times[contestant].append(timed(step)[0])
    medians = {contestant: statistics.median(found) for contestant, found in times.items()}
    print(f"\n{name}: {len(sequences)} sequences, {sum(shape.lengths)} tokens, the median of {turns} turns")
    ours = medians.pop("archon")
    for contestant, seconds in medians.items():
        details = {"sequences at a time": sizes[contestant]} if contestant in sizes else {}
        report.add(
            Measurement(
                f"{name}: {contestant}",
                seconds / ours,
                "higher",
                Figure(ours, "s"),
                Figure(seconds, "s"),
                contestant,
                turns,
                bar=shape.bars.get(contestant),
                details=details,
            )
        )


def save_model(folder: str, model: Mapping[str, Any]) -> None:
    """Write random weights as a checkpoint."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**model)).save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 when every ratio reaches its bar, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="one of the shapes [all]")
    parser.add_argument("--turns", type=int, default=5)
    add_json_option(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    report = Report("train_step", options.json)
    for name in options.shape or SHAPES:
        compare(name, options.turns, report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
