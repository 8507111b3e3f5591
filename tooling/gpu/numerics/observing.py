"""What is recorded of an engine's training steps, and how far two such records are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from archon_core.contracts.batch import ROUTED_EXPERTS, Batch
from archon_testing.batches import deal_unevenly, make_batch, make_tree_batch, token_places
from archon_testing.compare import compare
from archon_testing.held_shards import HeldShard, own_gradient, own_shard
from archon_testing.losses import oracle_loss
from archon_testing.record import Record, StepRecord
from gpu.numerics.models import SEED, STEPS, ModelName, model_config
from gpu.numerics.tolerances import BF16_GRADIENTS, BF16_LOSS, BF16_NORM, FP32
from gpu.records import Context, Outcome

FP32_BOUNDS = {"loss": FP32, "gradient norm": FP32, "gradients": FP32, "outputs": FP32}
STEP_BOUNDS = {name: bound for name, bound in FP32_BOUNDS.items() if name != "outputs"}
BF16_BOUNDS = {"loss": BF16_LOSS, "gradient norm": BF16_NORM, "gradients": BF16_GRADIENTS}


def batches_of(name: ModelName, context: Context, dtype: torch.dtype, *, shares_prefixes: bool = False) -> list[Batch]:
    """Ragged batches, a different one for every step, whose sequences may share prefixes."""
    config = model_config(name, context.device)
    sizes = {"vocab_size": config["vocab_size"], "longest": config["max_position_embeddings"]}
    make = make_tree_batch if shares_prefixes else make_batch
    # The second of these has one sequence only; the third is ragged again.
    return [make(step, **sizes, dtype=dtype, seed=SEED) for step in (0, 2)[:STEPS]]


def observe(
    engine: Any,
    name: ModelName,
    batches: Sequence[Batch],
    first: int = 0,
    *,
    gradients: bool = True,
    outputs: bool = True,
) -> Record:
    """Train on ``batches`` and record every step, with outputs before the first. Collective.

    Args:
        first: number of the first step, for an engine that goes on where another one stopped.
        gradients: record all gradients and weights, or only the last weights.
        outputs: record those before the first step; without gradients, they need graphs of their own.
    """
    loss = oracle_loss(critic=name == "critic")
    shares = [deal_unevenly(len(batch), engine.data_ranks.size)[engine.data_ranks.rank] for batch in batches]
    before: Mapping[str, torch.Tensor] = {}
    if outputs and not first:
        before = engine.forward_batch(batches[0].select(shares[0]), loss.request)
    steps = []
    for batch, share in zip(batches, shares, strict=True):
        stats = engine.train_batch(batch.select(share), loss)
        own = {n: own_gradient(p) for n, p in engine.parameters.items()} if gradients else {}
        weights = {n: own_shard(p) for n, p in engine.parameters.items()}
        steps.append(StepRecord({"loss": stats.loss}, stats.gradient_norm, _on_host(own), _on_host(weights)))
    return Record(
        tuple(steps),
        {label: values.cpu().double() for label, values in before.items()},
        tokens=None if engine.data_ranks.size == 1 else token_places(batches[0], shares[0]),
    )


def errors(found: Record, expected: Record) -> dict[str, float]:
    """The worst relative error of every quantity."""
    worst = compare(found, expected, "float32").worst
    return {quantity: deviation.error for quantity, deviation in worst.items()}


def outcome(found: Record, expected: Record, bounds: Mapping[str, float], message: str = "") -> Outcome:
    """The errors that ``bounds`` names, held against these; the tensor with the worst gradient is named."""
    comparison = compare(found, expected, "float32")
    measured = {quantity: comparison.worst[quantity].error for quantity in bounds}  # type: ignore[index]
    notes = [f"worst gradient: {comparison.worst['gradients'].name}" if "gradients" in bounds else "", message]
    return Outcome(measured, bounds, message="; ".join(note for note in notes if note))


def last_steps(record: Record, first: int) -> Record:
    """The steps from number ``first`` on."""
    return replace(record, steps=record.steps[first:], outputs={})


def with_routing(batch: Batch, experts: torch.Tensor) -> Batch:
    """The batch with the experts that its tokens go to, for an engine that replays them."""
    return batch.with_fields({ROUTED_EXPERTS: experts})


def _on_host(pieces: Mapping[str, HeldShard]) -> dict[str, HeldShard]:
    return {name: replace(piece, values=piece.values.cpu()) for name, piece in pieces.items()}
