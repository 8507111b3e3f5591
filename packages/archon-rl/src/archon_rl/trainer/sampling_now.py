"""Synchronous sampling: a step samples its completions with the weights that it trains, and waits for them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.rollout import GenerationConfig, InferenceEngine
from archon_core.contracts.workflows import Trajectory
from archon_core.ranks.ranks import DataRanks
from archon_rl.advantages import GROUPS
from archon_rl.algorithm import Algorithm
from archon_rl.collector.group import Group
from archon_rl.collector.sampling import NOT_SELECTED
from archon_rl.collector.window import Settled
from archon_rl.trainer.collecting import Collected, collect, shaped_batch, without_rewards
from archon_rl.trainer.rollout_batch import Rollout, rollout_seeds, sample
from archon_rl.trainer.scoring import Scorer
from archon_rl.trainer.step_metrics import PhaseClock
from archon_rl.trainer.task import Task
from archon_rl.workflows.token_checks import check_tokens
from archon_rl.workflows.tracing import trace_request


@dataclass(frozen=True)
class SampleNow:
    """A ``Collection`` that samples when a step asks for its completions.

    Attributes:
        task: records and tokenizer.
        algorithm: shapes rewards, and selects groups.
        rollout: samples with the actor's weights.
        scorer: scores completions; a step leaves out records with a completion without a reward. ``None`` for an
            algorithm that needs no rewards.
        options: sampling options; the stop tokens include the end-of-text token.
        seed: the run's seed.
        data_ranks: divide generation and rewards among them.
        needs_experts: require the routed experts of every completion (``rollout.return_routed_experts``).
        checks_tokens: check every token of the engine's completions.
        traces: log every request.
    """

    task: Task
    algorithm: Algorithm
    rollout: InferenceEngine
    scorer: Scorer | None
    options: GenerationConfig
    seed: int
    data_ranks: DataRanks
    needs_experts: bool = False
    checks_tokens: bool = False
    traces: bool = False

    def published(self, step: int) -> None:
        """See ``Collection``; the next step samples with these weights."""

    def state(self) -> bytes | None:
        """See ``Collection``; the position in the data is all that matters between steps."""
        return None

    def restore(self, state: bytes | None) -> None:
        """See ``Collection``. The groups that a collector had finished are sampled again."""

    def __call__(self, step: int, clock: PhaseClock) -> Collected:
        """The completions of ``step``; prompts with a completion without a reward are left out."""
        first, n_drawn, failed = self.task.cursor.first(step), 0, Counter[str]()
        drawn: dict[int, tuple[int, Group]] = {}  # place in the batch -> number of the record, group

        def draw(n: int) -> tuple[Batch, Tensor] | None:
            nonlocal n_drawn
            records = self.task.more_records(step, n) if n_drawn else self.task.records(step)
            with clock("rollout"):
                seeds = rollout_seeds(self.seed, first + n_drawn)
                start = time.perf_counter()
                rollout = sample(self.rollout, self.task.encoder, records, self.options, seeds, self.data_ranks)
                self._examine(rollout, first + n_drawn, time.perf_counter() - start)
            with clock("reward"):
                rewards, numbers = torch.zeros(sum(map(len, rollout.completions))), [*range(len(records))]
                if self.scorer is not None:
                    # Further prompts are few: all of them may fail without a fault of the whole reward.
                    is_further = n_drawn > 0
                    scores = self.scorer(rollout, self.data_ranks, when=f"Step {step + 1}", may_all_fail=is_further)
                    failed.update(scores.metrics())
                    complete = scores.complete(may_be_empty=is_further)
                    rollout, rewards = complete.rollout, complete.values
                    numbers = [n for n, found in enumerate(scores.outcomes) if not any(one.failed for one in found)]
                groups, batch = rollout.groups(n_drawn), None
                drawn.update(_scored(groups, [first + n_drawn + n for n in numbers], rewards.tolist()))
                if groups:
                    batch = shaped_batch(self.algorithm, groups, rewards, needs_experts=self.needs_experts)
            n_drawn += n
            return None if batch is None else (batch, rewards)

        collected = collect(
            draw,
            self.task.cursor.batch_size,
            selection=self.algorithm.selection,
            max_rounds=self.algorithm.max_rounds,
        )
        statistics = collected.statistics | {name: float(n) for name, n in failed.items()}
        if self.scorer is None:
            statistics = without_rewards(statistics)
        trained = set(collected.batch.sequence_fields[GROUPS].tolist())
        groups = {
            number: Settled(group, "" if place in trained else NOT_SELECTED) for place, (number, group) in drawn.items()
        }
        return replace(collected, statistics=statistics, groups=groups)

    def _examine(self, rollout: Rollout, first: int, seconds: float) -> None:
        """Log and check completions, as the options say; ``first`` is the number of the first record."""
        if self.traces and self.data_ranks.everyone.is_first:
            answered = zip(rollout.prompts, rollout.completions, strict=True)
            for number, (prompt, completions) in enumerate(answered, first):
                trace_request(str(number), len(prompt), completions, seconds)
        if self.checks_tokens:
            for trajectories in rollout.groups().values():
                for one in trajectories:
                    check_tokens("rlvr", one)


def _scored(
    groups: Mapping[int, Sequence[Trajectory]], numbers: Sequence[int], rewards: Sequence[float]
) -> dict[int, tuple[int, Group]]:
    """Place in the batch -> number of the record, and its trajectories with their rewards."""
    values = iter(rewards)
    return {
        place: (number, Group.of([replace(one, reward=next(values)) for one in trajectories]))
        for (place, trajectories), number in zip(groups.items(), numbers, strict=True)
    }
