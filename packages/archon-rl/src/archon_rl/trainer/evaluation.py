"""Evaluation on held-out records: mean reward of greedy completions, or mean loss of answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from archon_core.contracts.data import Dataset
from archon_core.contracts.loss import Loss
from archon_core.contracts.rollout import GenerationConfig, InferenceEngine
from archon_core.ranks.ranks import DataRanks
from archon_rl.datasets.placed_record import read_placed
from archon_rl.losses.aggregation import LOSS_MASK
from archon_rl.text_encoding import TextEncoder, supervised_batch
from archon_rl.trainer.rollout_batch import sample
from archon_rl.trainer.scoring import Scorer
from archon_rl.trainer.sharing import ONE_RANK, SharedEngine

EVAL_REWARD = "eval/reward"
EVAL_LOSS = "eval/loss"
EVAL_FAILED = "eval/reward_failed"
"""Completions without a reward, if there are any."""


def evaluate_reward(
    engine: InferenceEngine,
    encoder: TextEncoder,
    dataset: Dataset,
    scorer: Scorer,
    options: GenerationConfig,
    *,
    limit: int | None = None,
    data_ranks: DataRanks = ONE_RANK,
) -> dict[str, float]:
    """``eval/reward``: the mean raw reward of one greedy completion per record, of the first ``limit`` records.

    Completions without a reward are left out of the mean and counted.

    Args:
        options: greedy sampling options (``sampling_options(..., greedy=True)``).
        data_ranks: divide the records among them.

    Raises:
        RewardError: as ``Scorer`` does.
    """
    records = [read_placed(dataset, index) for index in range(_size(dataset, limit))]
    # Greedy decoding draws no random numbers, but a request needs a seed.
    rollout = sample(engine, encoder, records, options, seed_of=lambda place, number: 0, data_ranks=data_ranks)
    scores = scorer(rollout, data_ranks, when="Evaluation")
    n_failed = len(scores.failures)
    return {EVAL_REWARD: float(scores.values.double().mean()), **({EVAL_FAILED: n_failed} if n_failed else {})}


def evaluate_loss(
    engine: SharedEngine,
    encoder: TextEncoder,
    dataset: Dataset,
    objective: Loss,
    *,
    batch_size: int,
    limit: int | None = None,
) -> dict[str, float]:
    """``eval/loss``: the mean loss per answer token of the first ``limit`` records; independent of ``batch_size``."""
    total, weight = 0.0, 0.0
    for records in _batches(dataset, _size(dataset, limit), batch_size):
        batch = supervised_batch(encoder, records)
        n_tokens = float(batch.token_fields[LOSS_MASK].sum(dtype=torch.float64))
        total += engine.eval_batch(batch, objective).loss * n_tokens
        weight += n_tokens
    return {EVAL_LOSS: total / weight}


def _size(dataset: Dataset, limit: int | None) -> int:
    return len(dataset) if limit is None else min(limit, len(dataset))


def _batches(dataset: Dataset, size: int, batch_size: int) -> Iterator[list[Mapping[str, Any]]]:
    for start in range(0, size, batch_size):
        yield [dataset[index] for index in range(start, min(start + batch_size, size))]
