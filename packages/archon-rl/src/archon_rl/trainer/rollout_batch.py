"""Sampling, and the packed batch of completions with the fields that algorithms read.

Legend: S sequences (prompts times samples), T tokens of all prompts and completions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from archon_core.contracts.batch import ROUTED_EXPERTS, Batch
from archon_core.contracts.rollout import Completion, GenerationConfig, GenerationRequest, InferenceEngine
from archon_core.contracts.workflows import NO_VERSION, Trajectory
from archon_core.errors import TrainingError
from archon_core.models.end_tokens import EndTokens
from archon_core.ranks.ranks import DataRanks
from archon_core.seeding import derive_seed
from archon_rl.advantages import GROUPS, REWARDS
from archon_rl.algorithm import TRUNCATED
from archon_rl.losses.aggregation import LOSS_MASK
from archon_rl.losses.policy_term import LOGPROBS
from archon_rl.losses.proximal import VERSIONS
from archon_rl.text_encoding import TextEncoder
from archon_rl.trainer.sharing import ONE_RANK, map_over_ranks

COMPLETION_LENGTHS = "completion_lengths"
"""Sequence field, int64 [S]."""


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

    def groups(self, first: int = 0) -> dict[int, list[Trajectory]]:
        """The trajectories of each record; ``first`` is the number of the first record's group."""
        return {
            number: [Trajectory.from_completion(prompt, completion) for completion in samples]
            for number, (prompt, samples) in enumerate(zip(self.prompts, self.completions, strict=True), first)
        }

    def select(self, indices: Sequence[int]) -> Rollout:
        """Some of the records, with their prompts and completions."""
        parts = (self.records, self.prompts, self.completions)
        return Rollout(*(tuple(part[index] for index in indices) for part in parts))


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


def rollout_seeds(seed: int, first: int = 0) -> Callable[[int, int], int]:
    """Seeds for samples of training: functions of the run's seed, the number of the record and the sample alone.

    Args:
        first: number of the first record, counted over all records that the run has drawn.
    """
    return lambda place, number: derive_seed(seed, "rollout", first + place, number)


def build_batch(
    groups: Mapping[int, Sequence[Trajectory]], rewards: torch.Tensor, *, needs_experts: bool = False
) -> Batch:
    """Groups of trajectories as a packed batch with its fields.

    Args:
        groups: number of the group -> trajectories.
        rewards: shaped rewards [S].
        needs_experts: ``rollout.return_routed_experts``.

    Raises:
        TrainingError: some trajectories lack their routed experts while others have them or ``needs_experts`` is set.

    Returns:
        A batch with the token fields ``loss_mask`` (bool), ``logprobs`` (of the rollout, float64, 0 outside the mask),
        ``versions`` (of the weights that sampled, int64, ``NO_VERSION`` outside the mask) and, if the rollout returns
        them, ``routed_experts``; and the sequence fields ``rewards``, ``group``, ``truncated`` and
        ``completion_lengths``.
    """
    rows = [(group, trajectory) for group, trajectories in groups.items() for trajectory in trajectories]
    trajectories = [trajectory for _, trajectory in rows]
    return Batch(
        torch.tensor([token for one in trajectories for token in one.token_ids], dtype=torch.int64),
        tuple(len(one.token_ids) for one in trajectories),
        token_fields={
            LOSS_MASK: _of_next_tokens((one.loss_mask for one in trajectories), False, torch.bool),
            LOGPROBS: _of_next_tokens((one.logprobs for one in trajectories), 0.0, torch.float64),
            VERSIONS: _of_next_tokens((one.versions for one in trajectories), NO_VERSION, torch.int64),
            **_routed_experts(trajectories, needs_experts),
        },
        sequence_fields={
            REWARDS: rewards,
            GROUPS: torch.tensor([group for group, _ in rows]),
            TRUNCATED: torch.tensor([one.truncated for one in trajectories]),
            COMPLETION_LENGTHS: torch.tensor([one.n_sampled for one in trajectories]),
        },
    )


def _of_next_tokens(rows: Iterable[Sequence[Any]], last: Any, dtype: torch.dtype) -> torch.Tensor:
    """Rows end to end. The value at a position belongs to the token that the model predicts there; ``last`` stands at
    the end of each row."""
    return torch.tensor([value for row in rows for value in (*row[1:], last)], dtype=dtype)


def _routed_experts(trajectories: Sequence[Trajectory], needed: bool) -> dict[str, torch.Tensor]:
    """The token field ``routed_experts``; empty if the rollout returned no experts."""
    example = next((one.routed_experts for one in trajectories if one.routed_experts is not None), None)
    n_missing = sum(one.routed_experts is None and one.n_sampled > 0 for one in trajectories)
    if n_missing and (needed or example is not None):
        raise TrainingError(
            f"rollout.return_routed_experts: found {n_missing} of {len(trajectories)} completions without routed "
            "experts; the inference engine must return them for all completions: enable it there, or set "
            "rollout.return_routed_experts=false and moe_routing_replay=false"
        )
    if example is None:
        return {}
    field = []
    for one in trajectories:
        # -1 where a token never passed the router: the last token, whose successor nobody predicted, and all tokens of
        # a prompt without a completion.
        whole = example.new_full((len(one.token_ids), *example.shape[1:]), -1)
        if one.routed_experts is not None:
            whole[: len(one.routed_experts)] = one.routed_experts
        field.append(whole)
    return {ROUTED_EXPERTS: torch.cat(field)}
