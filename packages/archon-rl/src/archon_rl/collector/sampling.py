"""Samples one group: the record of its number, completions, rewards, and the algorithm's choice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from archon_core.contracts.data import Dataset
from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_core.contracts.serving import RolloutClient
from archon_core.contracts.workflows import Trajectory
from archon_rl.algorithm import Algorithm
from archon_rl.collector.group import Group
from archon_rl.collector.window import Settled
from archon_rl.datasets.cursor import DataCursor
from archon_rl.datasets.placed_record import PlacedRecord, read_placed
from archon_rl.rewards.calls import Outcome, RewardCall
from archon_rl.text_encoding import TextEncoder
from archon_rl.trainer.rollout_batch import build_batch, rollout_seeds
from archon_rl.trainer.scoring import reward_calls

NOT_SELECTED = "the algorithm did not select it"
NO_REWARD = "a completion has no reward"


class AsyncScorer(Protocol):
    """Scores the completions of a group."""

    async def score(self, calls: Sequence[RewardCall]) -> list[Outcome]: ...


@dataclass(frozen=True)
class GroupSampler:
    """Samples the groups of a run.

    Attributes:
        dataset: training records.
        cursor: their order.
        encoder: encodes prompts, decodes completions.
        client: completes prompts.
        options: sampling options, with all stop tokens.
        seed: the run's seed.
        algorithm: selects groups.
        rewards: ``None`` for an algorithm that needs no rewards.
    """

    dataset: Dataset
    cursor: DataCursor
    encoder: TextEncoder
    client: RolloutClient
    options: GenerationConfig
    seed: int
    algorithm: Algorithm
    rewards: AsyncScorer | None

    async def sample(self, number: int) -> Settled[Group]:
        """The group of record ``number``, counted over all records that the run draws.

        Raises:
            ArchonError: from the servers after all attempts, or from the record.
        """
        record = read_placed(self.dataset, self.cursor.index(number))
        seeds = rollout_seeds(self.seed, number)
        start = time.perf_counter()
        prompt = self.encoder.encode_prompt(record)
        request = GenerationRequest(
            prompt,
            self.options,
            tuple(seeds(0, sample) for sample in range(self.options.n_samples)),
            self.encoder.decode_literally,
        )
        completions = await self.client.generate(request, group=str(number))
        sampled = time.perf_counter()
        trajectories = [Trajectory.from_completion(prompt, completion) for completion in completions]
        outcomes = await self._outcomes(record, [completion.token_ids for completion in completions])
        seconds = {"rollout": sampled - start, "reward": time.perf_counter() - sampled}
        failures = tuple(outcome for outcome in outcomes if outcome.value is None)
        if failures:
            return Settled(Group((), (), (), 0, seconds=seconds, failures=failures), NO_REWARD)
        group = Group.of(trajectories, [outcome.value or 0.0 for outcome in outcomes], seconds)
        return self._selected(group)

    async def _outcomes(self, record: PlacedRecord, completions: Sequence[Sequence[int]]) -> list[Outcome]:
        if self.rewards is None:
            return [Outcome(0.0) for _ in completions]
        calls = reward_calls(self.encoder, record, record.place, completions)
        return [calls] * len(completions) if isinstance(calls, Outcome) else await self.rewards.score(calls)

    def _selected(self, group: Group) -> Settled[Group]:
        selection = self.algorithm.selection
        if selection is None:
            return Settled(group)
        raw, lengths = torch.tensor(group.rewards, dtype=torch.float32), torch.tensor(group.lengths)
        batch = build_batch({0: group.trajectories}, self.algorithm.rewards(raw, lengths))
        if selection(batch).all():
            return Settled(group)
        return Settled(group.without_trajectories(), NOT_SELECTED)
