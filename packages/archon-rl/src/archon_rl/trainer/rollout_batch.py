"""From completions to a packed batch with everything that the algorithm needs to know about each token.

Legend: S sequences (prompts times samples), T tokens of all prompts and completions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from archon_core.contracts.batch import ROUTED_EXPERTS, Batch
from archon_core.contracts.rollout import Completion, GenerationConfig, GenerationRequest, InferenceEngine
from archon_core.errors import TrainingError
from archon_core.models.end_tokens import EndTokens
from archon_core.ranks.failing_together import failing_together
from archon_core.ranks.ranks import DataRanks
from archon_core.seeding import derive_seed
from archon_rl.advantages import GROUPS, REWARDS
from archon_rl.algorithm import TRUNCATED
from archon_rl.fields import read_field
from archon_rl.losses.aggregation import LOSS_MASK
from archon_rl.losses.policy import LOGPROBS
from archon_rl.rewards.checking import NamedReward, checked_reward
from archon_rl.text_encoding import TextEncoder, continuation_mask
from archon_rl.trainer.sharing import ONE_RANK, in_shares

COMPLETION_LENGTHS = "completion_lengths"
"""Sequence field, int64 [S]."""


@dataclass(frozen=True)
class Rollout:
    """Records with their prompts and completions.

    Attributes:
        records: what the prompts were made from.
        prompts: ids per record.
        completions: per record, its samples.
    """

    records: tuple[Mapping[str, Any], ...]
    prompts: tuple[tuple[int, ...], ...]
    completions: tuple[tuple[Completion, ...], ...]


def sampling_options(generation: Any, ends: EndTokens, *, greedy: bool = False) -> GenerationConfig:
    """``gconfig`` with all tokens that end a completion; ``greedy`` makes it one most probable completion."""
    options = replace(generation, stop_token_ids=list(ends.ids))
    return replace(options, greedy=True, n_samples=1) if greedy else options


def sample(
    engine: InferenceEngine,
    encoder: TextEncoder,
    records: Sequence[Mapping[str, Any]],
    options: GenerationConfig,
    seed_of: Callable[[int, int], int],
    data_ranks: DataRanks = ONE_RANK,
) -> Rollout:
    """Complete the prompt of every record ``options.n_samples`` times.

    Args:
        seed_of: (place of the record, number of the sample) -> seed.
        data_ranks: each completes the prompts of some records, and knows all completions afterwards.
    """
    prompts = tuple(encoder.encode_prompt(record) for record in records)

    def generate(places: list[int]) -> list[tuple[Completion, ...]]:
        requests = [
            GenerationRequest(
                prompts[place], options, tuple(seed_of(place, number) for number in range(options.n_samples))
            )
            for place in places
        ]
        return [tuple(samples) for samples in engine.generate(requests)]

    return Rollout(tuple(records), prompts, tuple(in_shares(len(prompts), generate, data_ranks)))


def rollout_seeds(seed: int, step: int) -> Callable[[int, int], int]:
    """Seeds for the samples of a training step: they depend on the run's seed, the step and the sample alone."""
    return lambda place, number: derive_seed(seed, "rollout", step, place, number)


def score(
    rollout: Rollout, encoder: TextEncoder, reward: NamedReward, data_ranks: DataRanks = ONE_RANK
) -> torch.Tensor:
    """float32 [S]: the reward of every completion. ``record["answer"]`` is the answer, whatever the data calls
    it, when there is one; everything else in the record is as it was read.

    Args:
        data_ranks: each scores the completions of some records, and knows all rewards afterwards.

    Raises:
        RewardError, DataError: on every rank, what ``checked_reward`` raises on one.
    """

    def rewards_of(index: int) -> list[float]:
        record = rollout.records[index]
        place = getattr(record, "place", f"record {index} of the rollout")
        known = record
        if encoder.answer_key is not None:
            known = {**record, "answer": read_field(record, encoder.answer_key)}
        prompt = encoder.prompt(record)
        return [
            checked_reward(reward, prompt, encoder.decode(c.token_ids), known, place=place)
            for c in rollout.completions[index]
        ]

    def rewards_of_share(places: list[int]) -> list[list[float]]:
        with failing_together(data_ranks.everyone):
            return [rewards_of(place) for place in places]

    rewards = in_shares(len(rollout.records), rewards_of_share, data_ranks)
    return torch.tensor([value for samples in rewards for value in samples], dtype=torch.float32)


def build_batch(rollout: Rollout, rewards: torch.Tensor, *, needs_experts: bool = False) -> Batch:
    """Prompts and completions, packed, with their fields.

    Args:
        rewards: [S], shaped.
        needs_experts: ``rollout.return_routed_experts``.

    Raises:
        TrainingError: experts are needed, or told of some completions, and others do not tell them.

    Returns:
        A batch with the token fields ``loss_mask`` (bool), ``logprobs`` (of the rollout, 0 outside the mask) and,
        where the rollout tells them, ``routed_experts``; and the sequence fields ``rewards``, ``group``, ``truncated``
        and ``completion_lengths``.
    """
    rows = [
        (group, prompt, completion)
        for group, (prompt, samples) in enumerate(zip(rollout.prompts, rollout.completions, strict=True))
        for completion in samples
    ]
    lengths = [len(completion.token_ids) for _, _, completion in rows]
    return Batch.from_sequences(
        [prompt + completion.token_ids for _, prompt, completion in rows],
        token_fields={
            LOSS_MASK: [continuation_mask(len(prompt), n) for (_, prompt, _), n in zip(rows, lengths, strict=True)],
            LOGPROBS: [
                torch.tensor([0.0] * (len(prompt) - 1) + [*completion.logprobs] + [0.0], dtype=torch.float64)
                for _, prompt, completion in rows
            ],
            **_routed_experts(rows, needs_experts),
        },
        sequence_fields={
            REWARDS: rewards,
            GROUPS: torch.tensor([group for group, _, _ in rows]),
            TRUNCATED: torch.tensor([completion.stop_reason == "length" for _, _, completion in rows]),
            COMPLETION_LENGTHS: torch.tensor(lengths),
        },
    )


def _routed_experts(
    rows: Sequence[tuple[int, tuple[int, ...], Completion]], needed: bool
) -> dict[str, list[torch.Tensor]]:
    """Where tokens went in the rollout, as a token field; none where it does not tell."""
    told = next((c.routed_experts for _, _, c in rows if c.routed_experts is not None), None)
    silent = sum(c.routed_experts is None and len(c.token_ids) > 0 for _, _, c in rows)
    if silent and (needed or told is not None):
        raise TrainingError(
            f"rollout.return_routed_experts: found {silent} of {len(rows)} completions without the experts of their "
            "tokens; the inference engine must tell them of all: turn it on there, or set "
            "rollout.return_routed_experts=false and moe_routing_replay=false"
        )
    if told is None:
        return {}
    field = []
    for _, prompt, completion in rows:
        # The last token went nowhere: nothing was asked about it. Of prompts without completion no token did.
        whole = told.new_full((len(prompt) + len(completion.token_ids), *told.shape[1:]), -1)
        if completion.routed_experts is not None:
            whole[: len(completion.routed_experts)] = completion.routed_experts
        field.append(whole)
    return {ROUTED_EXPERTS: field}
