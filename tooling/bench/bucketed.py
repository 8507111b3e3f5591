"""Archon against picotron's approach to data and tensor parallelism, on the same weights and tokens.

picotron is not on a package index, and this is not its code: it is our reading of its published design, on top of
transformers' Qwen3. Data parallelism sums whole gradients in buckets, each all-reduced as soon as its last gradient is
there. Tensor parallelism splits columns, then rows (Shoeybi et al., 2019), and all-reduces whole activations: there is
no sequence parallelism. Every rank holds an optimizer of all its weights. Sequences are rows of one matrix, so that
unequal lengths are padded to the longest of their micro-batch; picotron itself trains on text cut to one length.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from records import Figure, Measurement
from report import Report
from torch import Tensor, nn
from train_step import LEARNING_RATE, LOSS_TOLERANCE, lognormal_lengths, model_entries, save_model

from archon_testing.worlds import run_world

MODEL = model_entries(256, 4, 768, 2048, 8)
BATCHES: Mapping[str, tuple[tuple[int, ...], float | None]] = {
    "ragged": (lognormal_lengths(32, 64, 8, 256), 1.2),
    "equal": ((128,) * 16, None),
}
"""Name -> lengths of the sequences, and the least ratio of the other's time to Archon's."""
MICRO_BATCH = 8
"""Sequences of a micro-batch of the other side."""
BUCKET_BYTES = 2**22
LAYOUTS = ("d2", "t2")


class Buckets:
    """Gradients in flat buckets, which are all-reduced while the backward pass goes on.

    Args:
        module: whose gradients are summed.
    """

    def __init__(self, module: nn.Module) -> None:
        self._waiting: list[int] = []
        self._flat: list[Tensor] = []
        self._works: list[Any] = []
        self.is_last = True
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        groups: list[list[nn.Parameter]] = [[]]
        for parameter in reversed(parameters):  # about the order in which gradients come
            if sum(one.nbytes for one in groups[-1]) + parameter.nbytes > BUCKET_BYTES and groups[-1]:
                groups.append([])
            groups[-1].append(parameter)
        self._sizes = [len(group) for group in groups]
        for number, group in enumerate(groups):
            flat = torch.zeros(sum(one.numel() for one in group))
            self._flat.append(flat)
            start = 0
            for parameter in group:
                parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
                start += parameter.numel()
                parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._ready(number))
        self._waiting = list(self._sizes)

    def clear(self) -> None:
        """Before a step."""
        self._waiting = list(self._sizes)
        for flat in self._flat:
            flat.zero_()

    def finish(self) -> None:
        """Wait for all sums."""
        for work in self._works:
            work.wait()
        self._works.clear()

    def _ready(self, number: int) -> None:
        if not self.is_last:
            return
        self._waiting[number] -= 1
        if not self._waiting[number]:
            self._works.append(dist.all_reduce(self._flat[number], async_op=True))


class Copied(torch.autograd.Function):
    """The input of column-parallel layers: gradients are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient


class Summed(torch.autograd.Function):
    """The output of row-parallel layers: parts are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Gathered(torch.autograd.Function):
    """The logits of a column-parallel head, on every rank; the gradient keeps its part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.chunk(dist.get_world_size(), -1)[dist.get_rank()].contiguous()


def split_tensors(model: Any) -> None:
    """Keep this rank's columns and rows of every layer and of the head."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        columns = (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj)
        for linear in columns:
            _keep(linear, 0)
        for linear in (attention.o_proj, mlp.down_proj):
            _keep(linear, 1)
            linear.register_forward_hook(lambda _module, _given, out: Summed.apply(out))
        attention.register_forward_pre_hook(_copy_states, with_kwargs=True)
        mlp.register_forward_pre_hook(lambda _module, given: (Copied.apply(given[0]),))
        # Norms of single heads see the rank's heads alone.
        for norm in (attention.q_norm, attention.k_norm):
            norm.weight.register_hook(_summed_gradient)
    _keep(model.lm_head, 0)
    model.lm_head.register_forward_pre_hook(lambda _module, given: (Copied.apply(given[0]),))
    model.lm_head.register_forward_hook(lambda _module, _given, out: Gathered.apply(out))


def _copy_states(_module: Any, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return given, named | {"hidden_states": Copied.apply(named["hidden_states"])}


def _summed_gradient(gradient: Tensor) -> Tensor:
    gradient = gradient.clone()
    dist.all_reduce(gradient)
    return gradient


def _keep(linear: nn.Linear, dim: int) -> None:
    linear.weight = nn.Parameter(linear.weight.detach().chunk(dist.get_world_size(), dim)[dist.get_rank()].clone())


def with_buckets(folder: str, sequences: Sequence[Tensor], layout: str, n_targets: int) -> Callable[[], float]:
    """Steps of the other side; each returns the loss of the whole batch."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if layout == "t2":
        split_tensors(model)
    buckets = Buckets(model) if layout == "d2" else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    starts = range(0, len(sequences), MICRO_BATCH)
    parts = [_padded(sequences[start : start + MICRO_BATCH]) for start in starts]

    def step() -> float:
        if buckets is None:
            optimizer.zero_grad(set_to_none=True)
        else:
            buckets.clear()
        total = torch.zeros(())
        for number, (ids, targets) in enumerate(parts):
            if buckets is not None:
                buckets.is_last = number == len(parts) - 1
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / n_targets
            loss.backward()
            total += loss.detach()
        if buckets is not None:
            buckets.finish()
            dist.all_reduce(total)
        _clip(model, layout)
        optimizer.step()
        return float(total)

    return step


def _clip(model: nn.Module, layout: str) -> None:
    """Clip by the norm over all ranks."""
    squares = torch.zeros(2)
    for name, parameter in model.named_parameters():
        split = layout == "t2" and ("proj" in name or "lm_head" in name)
        squares[int(split)] += parameter.grad.square().sum()
    if layout == "t2":
        dist.all_reduce(squares[1:])
    scale = (1.0 / (squares.sum().sqrt() + 1e-6)).clamp(max=1.0)
    for parameter in model.parameters():
        parameter.grad.mul_(scale)


def _padded(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Ids, padded on the right, where causal attention needs no mask, and targets without padding."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    targets = torch.full((len(sequences), longest - 1), -100)
    for row, one in enumerate(sequences):
        ids[row, : len(one)] = one
        targets[row, : len(one) - 1] = one[1:]
    return ids, targets


def with_archon(folder: str, sequences: Sequence[Tensor], layout: str, n_targets: int) -> Callable[[], float]:
    """Steps of the engine; each returns the loss of the whole batch."""
    from archon_core import assemble, parse_layout
    from archon_core.contracts.batch import Batch
    from archon_core.contracts.engine_config import OptimizerConfig
    from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
    from archon_testing.losses import NegativeLogLikelihood

    config = ArchonEngineConfig(
        path=folder,
        dtype="float32",
        gradient_checkpointing=False,
        optimizer=OptimizerConfig(type="adamw", lr=LEARNING_RATE, gradient_clipping=1.0, weight_decay=0.0),
        archon=ArchonOptions(enable_compile=False),
    )
    engine = assemble(config, role="actor", layout=parse_layout(f"archon:{layout}"), seed=0, total_steps=None)
    engine.initialize()
    batch, loss = Batch.from_sequences(list(sequences)), NegativeLogLikelihood()
    # That loss is a mean over all tokens; the last token of a sequence has no target.
    factor = _all_tokens(batch, layout) / n_targets
    return lambda: engine.train_batch(batch, loss).loss * factor


def _all_tokens(batch: Any, layout: str) -> int:
    tokens = torch.tensor(batch.n_tokens)
    if layout == "d2":
        dist.all_reduce(tokens)
    return int(tokens)


def measure(folder: str, lengths: Sequence[int], layout: str, rounds: int) -> Iterator[dict[str, float]]:
    """On a rank: the losses of two steps, then the seconds of both sides by turns, of the slower rank."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(0, MODEL["vocab_size"], (n,), generator=generator) for n in lengths]
    n_targets = sum(len(one) - 1 for one in sequences)
    if layout == "d2":
        sequences = sequences[dist.get_rank() :: 2]
    made = {"archon": with_archon, "bucketed": with_buckets}
    sides = {name: make(folder, sequences, layout, n_targets) for name, make in made.items()}
    for number in range(rounds + 2):
        row = {}
        for name, step in sides.items():
            dist.barrier()
            started = time.perf_counter()
            loss = step()
            seconds = torch.tensor(time.perf_counter() - started)
            dist.all_reduce(seconds, dist.ReduceOp.MAX)
            row[name] = float(seconds) if number > 1 else loss
        yield row


def compare_approaches(name: str, rounds: int, report: Report) -> None:
    """Measure one batch on every layout."""
    lengths, bar = BATCHES[name]
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, MODEL)
        for layout in LAYOUTS:
            rows: list[dict[str, float]] = []

            def on_value(rank: int, row: dict[str, float], rows: list[dict[str, float]] = rows) -> None:
                if rank == 0:
                    rows.append(row)

            run_world(measure, 2, (folder, lengths, layout, rounds), time_limit=120, on_value=on_value)
            timed = rows[2:]
            # The second loss comes after an update: it shows that gradients agree, too.
            difference = max(abs(row["bucketed"] / row["archon"] - 1) for row in rows[:2])
            if not difference <= LOSS_TOLERANCE:
                report.fail(f"{layout}, {name}: losses differ by {difference:.1e}, allowed {LOSS_TOLERANCE:g}")
            ours, other = (statistics.median(row[side] for row in timed) for side in ("archon", "bucketed"))
            report.add(
                Measurement(
                    f"{layout}: {name} lengths",
                    other / ours,
                    "higher",
                    Figure(1e3 * ours, "ms"),
                    Figure(1e3 * other, "ms"),
                    "picotron's approach, our reading",
                    rounds,
                    bar=bar,
                )
            )
