"""Sampling, scoring, and the packed batch of completions with the fields that algorithms read.

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
from archon_rl.losses.policy_term import LOGPROBS
from archon_rl.losses.proximal import VERSIONS
from archon_rl.rewards.checking import NamedReward, checked_reward
from archon_rl.text_encoding import TextEncoder, continuation_mask
from archon_rl.trainer.sharing import ONE_RANK, map_over_ranks

COMPLETION_LENGTHS = "completion_lengths"
"""Sequence field, int64 [S]."""
NO_VERSION = -1
"""Version of tokens that were not sampled."""


@dataclass(frozen=True)
class Rollout:
    """Records with their prompts and completions.

    Attributes:
        records: source of the prompts.
        prompts: token ids per record.
        completions: samples per record.
    """

    records: tuple[Mapping[str, Any], ...]
    prompts: tuple[tuple[int, ...], ...]
    completions: tuple[tuple[Completion, ...], ...]


def sampling_options(generation: Any, ends: EndTokens, *, greedy: bool = False) -> GenerationConfig:
    """Sampling options with all tokens that end a completion as stop tokens; ``greedy`` for one greedy completion."""
    own = () if generation.ignore_eos else ends.own
    options = replace(generation, stop_token_ids=list(dict.fromkeys((*own, *generation.stop_token_ids))))
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
        seed_of: (position of the record, number of the sample) -> seed.
        data_ranks: each generates for some of the records; all get all completions.
    """
    prompts = tuple(encoder.encode_prompt(record) for record in records)

    def generate(places: list[int]) -> list[tuple[Completion, ...]]:
        requests = [
            GenerationRequest(
                prompts[place],
                options,
                tuple(seed_of(place, number) for number in range(options.n_samples)),
                encoder.decode_literally,
            )
            for place in places
        ]
        return [tuple(samples) for samples in engine.generate(requests)]

    return Rollout(tuple(records), prompts, tuple(map_over_ranks(len(prompts), generate, data_ranks)))


def rollout_seeds(seed: int, step: int, first_place: int = 0) -> Callable[[int, int], int]:
    """Seeds for the samples of a training step; functions of the run's seed, the step and the sample alone.

    Args:
        first_place: number of prompts that the step has drawn before.
    """
    return lambda place, number: derive_seed(seed, "rollout", step, first_place + place, number)


def score(
    rollout: Rollout, encoder: TextEncoder, reward: NamedReward, data_ranks: DataRanks = ONE_RANK
) -> torch.Tensor:
    """The reward of every completion, float32 [S].

    The reward function gets the record as it was read, with the answer also under ``"answer"`` whatever the field's
    name in the data.

    Args:
        data_ranks: each scores the completions of some records; all get all rewards.

    Raises:
        RewardError, DataError: on every rank, if ``checked_reward`` raises it on one.
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

    rewards = map_over_ranks(len(rollout.records), rewards_of_share, data_ranks)
    return torch.tensor([value for samples in rewards for value in samples], dtype=torch.float32)


def build_batch(rollout: Rollout, rewards: torch.Tensor, *, needs_experts: bool = False, first_group: int = 0) -> Batch:
    """Prompts and completions as a packed batch with their fields.

    Args:
        rewards: shaped rewards [S].
        needs_experts: ``rollout.return_routed_experts``.
        first_group: number of the first prompt's group.

    Raises:
        TrainingError: some completions lack their routed experts while others have them or ``needs_experts`` is set.

    Returns:
        A batch with the token fields ``loss_mask`` (bool), ``logprobs`` (of the rollout, float64, 0 outside the mask),
        ``versions`` (of the weights that sampled, int64, ``NO_VERSION`` outside the mask) and, if the rollout returns
        them, ``routed_experts``; and the sequence fields ``rewards``, ``group``, ``truncated`` and
        ``completion_lengths``.
    """
    rows = [
        (group, prompt, completion)
        for group, (prompt, samples) in enumerate(zip(rollout.prompts, rollout.completions, strict=True), first_group)
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
            VERSIONS: [
                torch.tensor([NO_VERSION] * (len(prompt) - 1) + [*completion.versions] + [NO_VERSION])
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
    """The token field ``routed_experts``; empty if the rollout returned no experts."""
    example = next((c.routed_experts for _, _, c in rows if c.routed_experts is not None), None)
    n_missing = sum(c.routed_experts is None and len(c.token_ids) > 0 for _, _, c in rows)
    if n_missing and (needed or example is not None):
        raise TrainingError(
            f"rollout.return_routed_experts: found {n_missing} of {len(rows)} completions without routed experts; "
            "the inference engine must return them for all completions: enable it there, or set "
            "rollout.return_routed_experts=false and moe_routing_replay=false"
        )
    if example is None:
        return {}
    field = []
    for _, prompt, completion in rows:
        # -1 where a token never passed the router: the last token, whose successor nobody predicted, and all tokens of
        # a prompt without a completion.
        whole = example.new_full((len(prompt) + len(completion.token_ids), *example.shape[1:]), -1)
        if completion.routed_experts is not None:
            whole[: len(completion.routed_experts)] = completion.routed_experts
        field.append(whole)
    return {ROUTED_EXPERTS: field}
