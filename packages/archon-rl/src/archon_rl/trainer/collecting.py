"""The completions of a training step, in one round of sampling or several.

An algorithm's ``selection`` removes groups that teach nothing. DAPO's dynamic sampling (arXiv:2503.14476, section 3.2)
draws further prompts in their place until the batch is full: each round draws as many prompts as are missing, so no
group is sampled and then left over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.workflows import NO_VERSION, Trajectory
from archon_rl.advantages import GROUPS
from archon_rl.algorithm import TRUNCATED, Algorithm, SequenceFilter
from archon_rl.collector.group import Group
from archon_rl.collector.window import Settled
from archon_rl.trainer.rollout_batch import COMPLETION_LENGTHS, build_batch
from archon_rl.trainer.step_metrics import PhaseClock


@dataclass(frozen=True)
class Collected:
    """The completions of a step.

    Attributes:
        batch: the selected completions.
        statistics: of all completions, selected or not.
        groups: all groups that were drawn, by the number of their record, for files.
    """

    batch: Batch
    statistics: dict[str, float]
    groups: Mapping[int, Settled[Group]] = field(default_factory=dict)


class StoppedWaitingError(Exception):
    """The user asks to stop while a step or an evaluation waits for completions that others provide. Raised on all
    ranks."""


class Collection(Protocol):
    """Provides the completions of training steps, in order."""

    def __call__(self, step: int, clock: PhaseClock) -> Collected:
        """The completions of ``step``, counted from 0, with their rewards. Collective. ``clock`` measures phases.

        Raises:
            StoppedWaitingError: on all ranks; the step has not begun.
        """

    def published(self, step: int) -> None:
        """The inference engine has the weights after ``step`` training steps. Collective."""

    def state(self) -> bytes | None:
        """What a checkpoint keeps between steps, on the first rank; ``None`` for nothing. Not collective."""

    def restore(self, state: bytes | None) -> None:
        """Continue with the state of a checkpoint, before the first ``published``. Collective."""


@dataclass
class Sampled:
    """Facts about the completions that a step has drawn, selected or not.

    Attributes:
        rewards: raw rewards.
        lengths: sampled tokens.
        truncated: whether a completion reached the length limit.
        n_tokens: tokens, prompts included.
    """

    rewards: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    n_tokens: int = 0

    def add(
        self, rewards: Sequence[float], lengths: Sequence[int], truncated: Sequence[bool], *, n_tokens: int
    ) -> None:
        """Add completions."""
        self.rewards += rewards
        self.lengths += lengths
        self.truncated += truncated
        self.n_tokens += n_tokens

    def statistics(self, n_selected: int) -> dict[str, float]:
        """Metrics of a step that selected ``n_selected`` completions; without a completion, it has no means."""
        if not self.rewards:
            return {"tokens": 0, "selected": 0.0}
        rewards = torch.tensor(self.rewards, dtype=torch.float32)
        return {
            "reward": float(rewards.mean()),
            "reward_std": float(rewards.std()) if len(rewards) > 1 else 0.0,
            "completion_tokens": float(torch.tensor(self.lengths, dtype=torch.float64).mean()),
            "truncated": float(torch.tensor(self.truncated, dtype=torch.float64).mean()),
            "tokens": self.n_tokens,
            "selected": n_selected / len(rewards),
        }


def collect(
    draw: Callable[[int], tuple[Batch, Tensor] | None],
    n_prompts: int,
    *,
    selection: SequenceFilter | None = None,
    max_rounds: int = 1,
) -> Collected:
    """Draw until ``n_prompts`` groups are selected, or for ``max_rounds`` rounds.

    Args:
        draw: samples and scores the next n prompts; returns their completions, whose groups have numbers that no other
            call returns, and raw rewards [S]; ``None`` without a completion, which the first call never returns.
        selection: chooses sequences, whole groups at a time; ``None`` for all.
    """
    chosen: list[Batch] = []
    sampled = Sampled()
    n_drawn = n_kept = n_rounds = 0
    while n_kept < n_prompts and n_rounds < max_rounds:
        n = n_prompts - n_kept
        drawn = draw(n)
        n_rounds += 1
        n_drawn += n
        if drawn is None:
            continue
        batch, raw = drawn
        # Only the selected completions are kept: those of many rounds may not fit in memory.
        chosen.append(batch if selection is None else batch.select(selection(batch).nonzero()[:, 0].tolist()))
        lengths, truncated = batch.sequence_fields[COMPLETION_LENGTHS], batch.sequence_fields[TRUNCATED]
        sampled.add(raw.tolist(), lengths.tolist(), truncated.tolist(), n_tokens=batch.n_tokens)
        n_kept += len(chosen[-1].sequence_fields[GROUPS].unique())
    selected = Batch.concatenate(chosen)
    statistics = sampled.statistics(len(selected))
    if selection is not None:
        statistics |= refill_statistics(n_drawn, n_kept, n_prompts, n_rounds)
    return Collected(selected, statistics)


def shaped_batch(
    algorithm: Algorithm,
    groups: Mapping[int, Sequence[Trajectory]],
    rewards: Sequence[float] | Tensor,
    *,
    needs_experts: bool,
) -> Batch:
    """The batch of groups, with the rewards as the algorithm shapes them.

    Args:
        rewards: raw rewards [S].
    """
    if not groups:
        nothing = Trajectory((0,), (False,), (0.0,), (NO_VERSION,))
        return build_batch({0: [nothing]}, torch.zeros(1)).select([])
    lengths = torch.tensor([one.n_sampled for trajectories in groups.values() for one in trajectories])
    shaped = algorithm.rewards(torch.as_tensor(rewards, dtype=torch.float32), lengths)
    return build_batch(groups, shaped, needs_experts=needs_experts)


def without_rewards(statistics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a step of an algorithm that needs no rewards."""
    return {name: value for name, value in statistics.items() if name not in ("reward", "reward_std")}


def refill_statistics(n_drawn: int, n_kept: int, n_prompts: int, n_rounds: int) -> dict[str, float]:
    """Metrics of a step with a selection."""
    return {
        "sampling_rounds": n_rounds,
        "prompts": n_drawn,
        "rejected_prompts": n_drawn - n_kept,
        "missing_prompts": n_prompts - n_kept,
    }
