"""Collects the completions of a training step, in one round of sampling or several.

An algorithm's ``selection`` removes groups that teach nothing. DAPO's dynamic sampling (arXiv:2503.14476, section 3.2)
draws further prompts in their place until the batch is full: each round draws as many prompts as are missing, so no
group is sampled and then left over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_rl.advantages import GROUPS
from archon_rl.algorithm import TRUNCATED, SequenceFilter
from archon_rl.trainer.rollout_batch import COMPLETION_LENGTHS


@dataclass(frozen=True)
class Collected:
    """The completions of a step.

    Attributes:
        batch: the selected completions.
        statistics: of all completions, selected or not.
    """

    batch: Batch
    statistics: dict[str, float]


def collect(
    draw: Callable[[int], tuple[Batch, Tensor]],
    n_prompts: int,
    *,
    selection: SequenceFilter | None = None,
    max_rounds: int = 1,
) -> Collected:
    """Draw until ``n_prompts`` groups are selected, or for ``max_rounds`` rounds.

    Args:
        draw: samples and scores the next n prompts; returns their completions, whose groups have numbers that no other
            call returns, and raw rewards [S].
        selection: chooses sequences, whole groups at a time; ``None`` for all.
    """
    chosen: list[Batch] = []
    rewards: list[Tensor] = []
    lengths: list[Tensor] = []
    truncated: list[Tensor] = []
    n_tokens = n_drawn = n_kept = 0
    while n_kept < n_prompts and len(chosen) < max_rounds:
        n = n_prompts - n_kept
        batch, raw = draw(n)
        # Only the selected completions are kept: those of many rounds may not fit in memory.
        chosen.append(batch if selection is None else batch.select(selection(batch).nonzero()[:, 0].tolist()))
        rewards.append(raw)
        lengths.append(batch.sequence_fields[COMPLETION_LENGTHS])
        truncated.append(batch.sequence_fields[TRUNCATED])
        n_tokens += batch.n_tokens
        n_drawn += n
        n_kept += len(chosen[-1].sequence_fields[GROUPS].unique())
    selected, scores = Batch.concatenate(chosen), torch.cat(rewards)
    statistics = {
        "reward": float(scores.mean()),
        "reward_std": float(scores.std()) if len(scores) > 1 else 0.0,
        "completion_tokens": float(torch.cat(lengths).double().mean()),
        "truncated": float(torch.cat(truncated).double().mean()),
        "tokens": n_tokens,
        "selected": len(selected) / len(scores),
    }
    if selection is not None:
        statistics |= {
            "sampling_rounds": len(chosen),
            "prompts": n_drawn,
            "rejected_prompts": n_drawn - n_kept,
            "missing_prompts": n_prompts - n_kept,
        }
    return Collected(selected, statistics)
