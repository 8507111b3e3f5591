"""The split of a step's batch into mini-batches, one per optimizer step."""

from __future__ import annotations

import torch

from archon_core.contracts.batch import Batch
from archon_core.contracts.engine import StepStats
from archon_rl.algorithm import SequenceFilter
from archon_rl.losses.aggregation import LOSS_MASK
from archon_rl.losses.objective import Objective
from archon_rl.trainer.sharing import SharedEngine


def split_minibatches(batch: Batch, n: int, seed: int) -> list[Batch]:
    """A random split of the batch into ``n`` parts whose numbers of sequences differ by at most one."""
    if n == 1:
        return [batch]
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    return [batch.select(part.tolist()) for part in order.tensor_split(n)]


def trained_minibatches(batch: Batch, n: int, seed: int) -> list[Batch]:
    """The parts of ``split_minibatches`` that have a trained token."""
    return [part for part in split_minibatches(batch, n, seed) if part.token_fields[LOSS_MASK].any()]


def train_minibatches(
    engine: SharedEngine, batch: Batch, objective: Objective, *, n_minibatches: int, seed: int
) -> list[StepStats]:
    """One optimizer step per part of ``trained_minibatches``."""
    parts = trained_minibatches(batch, n_minibatches, seed)
    return [engine.train_batch(minibatch, objective) for minibatch in parts]


def apply_filters(batch: Batch, filters: tuple[SequenceFilter, ...]) -> Batch:
    """The batch with the loss mask cleared for sequences that a filter rejects."""
    mask = batch.token_fields[LOSS_MASK]
    for keep in filters:
        mask = mask & keep(batch)[batch.sequence_ids]
    return batch.with_fields({LOSS_MASK: mask})
