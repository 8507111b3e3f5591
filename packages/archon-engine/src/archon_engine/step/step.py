"""One training step or evaluation over a batch: split, normalise, run, clip, update.

The weights that normalise a loss are summed over the whole batch, on all ranks, before the first forward pass. So the
numbers depend neither on the split into micro-batches nor on the split over ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch, MicroBatch
from archon_core.contracts.engine import StepStats
from archon_core.contracts.loss import Loss, OutputRequest
from archon_core.contracts.packed import OutputName
from archon_core.errors import DataError
from archon_engine.parallel.tensor import sum_replicated_gradients
from archon_engine.profiling.ranges import profiled_range
from archon_engine.running import Running
from archon_engine.step.consistency import Share, agree
from archon_engine.step.grad_norm import clip_gradients, global_gradient_norm
from archon_engine.step.loss_totals import LossTotals


def train_step(batch: Batch, loss: Loss, running: Running, *, step: int, max_gradient_norm: float) -> StepStats:
    """Forward and backward over all micro-batches, then one optimizer update. Collective.

    Args:
        batch: this rank's sequences.
        loss: the loss to minimise.
        running: the engine, which has an optimizer.
        step: number of this optimizer step, from 0.
        max_gradient_norm: clip to this global norm; 0 does not clip.

    Returns:
        Statistics over all ranks. If ``skipped``, the norm was not finite, and weights and optimizer state are
        unchanged.

    Raises:
        DataError, TrainingError: on every rank, if the batch does not fit the options or the model, or the loss has no
            gradient.
    """
    assembled, optimizer = running.assembled, running.optimizer
    assert optimizer is not None, "the engine refuses to train without one"
    with profiled_range("split the batch"):
        micro_batches, whole = _prepare(batch, loss.request, running, loss)
    totals = LossTotals(loss, whole, running.ranks)
    reports = None
    expert_load: Mapping[str, Sequence[int]] = {}
    if assembled.experts is not None:
        micro_batches, reports = assembled.experts.with_batch_totals(micro_batches, whole)
    optimizer.zero_grad()
    running.runner.train(micro_batches, totals.objective)
    with profiled_range("gradient norm"):
        for mesh in () if assembled.meshes is None else assembled.meshes.copying:
            sum_replicated_gradients(optimizer.parameters.values(), mesh)
        if assembled.tied is not None and assembled.plan.adapter is None:  # an adapter freezes embedding and head
            # Before the norm, which counts only the original; its gradient must be the sum of both copies'.
            assembled.tied.sum_gradients()
        objective, metrics = totals.gather(differentiated=True)
        logical = [parameter for name, parameter in optimizer.parameters.items() if name not in assembled.copies]
        norm = global_gradient_norm(logical, None if assembled.pipeline is None else assembled.pipeline.group)
        # The norm is equal on all ranks, so either all of them step or none does.
        finite = bool(torch.isfinite(norm))
    learning_rate = optimizer.learning_rate(step)
    if finite:
        with profiled_range("optimizer"):
            if max_gradient_norm > 0:
                clip_gradients(optimizer.parameters.values(), norm, max_gradient_norm)
            optimizer.step(learning_rate)
    if assembled.experts is not None and reports is not None:
        of_experts, expert_load = assembled.experts.finish(reports, stepped=finite)
        metrics |= of_experts
    return StepStats(
        loss=objective,
        gradient_norm=float(norm),
        learning_rate=learning_rate,
        skipped=not finite,
        n_micro_batches=whole.n_micro_batches,
        n_tokens=whole.n_tokens,
        metrics=metrics,
        expert_load=expert_load,
    )


def eval_step(batch: Batch, loss: Loss, running: Running) -> StepStats:
    """The loss and its metrics without gradients. Collective."""
    micro_batches, whole = _prepare(batch, loss.request, running, loss)
    totals = LossTotals(loss, whole, running.ranks)
    with torch.no_grad():
        for micro_batch, outputs in running.runner.forward(micro_batches):
            totals.objective(outputs, micro_batch)
    objective, metrics = totals.gather()
    return StepStats(
        loss=objective,
        gradient_norm=None,
        learning_rate=None,
        skipped=False,
        n_micro_batches=whole.n_micro_batches,
        n_tokens=whole.n_tokens,
        metrics=metrics,
    )


def forward_step(batch: Batch, request: OutputRequest, running: Running) -> dict[OutputName, Tensor]:
    """Per-token outputs [T] of this rank's ``batch``, in its order, without gradients. Collective."""
    outputs: dict[OutputName, Tensor] = {}
    micro_batches, _ = _prepare(batch, request, running)
    for micro_batch, values in running.runner.forward(micro_batches):
        places = _token_places(batch, micro_batch.indices)
        for name, value in values.items():
            whole = outputs.setdefault(name, value.new_zeros(batch.n_tokens, *value.shape[1:]))
            whole[places] = value
    return outputs


def _prepare(
    batch: Batch, request: OutputRequest, running: Running, loss: Loss | None = None
) -> tuple[list[MicroBatch], Share]:
    """Build this rank's micro-batches, as many as on every other rank, and combine the shares. Collective.

    Raises:
        DataError: on every rank, if the batch of one cannot be split or has token ids outside the vocabulary.
        Exception: on every rank, an error that the loss raises on one in ``weights``.
    """
    split = running.split
    plan: list[Sequence[int]] = []
    share: Share | Exception
    # No rank may leave before the collective in agree(): the others would wait in it forever.
    try:
        _check_ids(batch, getattr(running.assembled.plan.hf_config, "vocab_size", None))
        plan = split.plan(batch)
        share = Share.of(batch, len(plan), loss)
    except Exception as error:
        share = error
    whole = agree(share, running.ranks)
    whole = replace(whole, n_micro_batches=split.number_for(whole.n_micro_batches))
    return split.build(batch, plan, request, whole.n_micro_batches), whole


def _check_ids(batch: Batch, vocab_size: int | None) -> None:
    """Raise DataError for an id outside the vocabulary; ``None`` leaves ids unchecked.

    On one process the model would fail somewhere inside; sharded embeddings would silently return zeros.
    """
    if vocab_size is None or not batch.n_tokens:
        return
    least, most = (int(bound) for bound in batch.input_ids.aminmax())
    if least < 0 or most >= vocab_size:
        raise DataError(
            f"batch: found token id {least if least < 0 else most}; the model's vocabulary has ids 0 to "
            f"{vocab_size - 1}; tokenize with the tokenizer that belongs to the model"
        )


def _token_places(batch: Batch, indices: Sequence[int]) -> Tensor:
    spans = [torch.arange(batch.offsets[i], batch.offsets[i + 1]) for i in indices]
    return torch.cat([torch.empty(0, dtype=torch.int64), *spans]).to(batch.input_ids.device)
