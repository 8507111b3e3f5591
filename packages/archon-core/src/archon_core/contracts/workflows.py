"""Workflows: how a record of the data becomes trajectories to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from archon_core.contracts.rollout import Completion

NO_VERSION = -1
"""Version of tokens that were not sampled."""


@dataclass(frozen=True)
class Trajectory:
    """A sequence of tokens to train on. Every field per token has an entry for every token, the prompt's included.

    Attributes:
        token_ids: of the prompt, of every turn, and of what stands between turns. Sampled tokens are kept as they were
            sampled, and never decoded and tokenised again.
        loss_mask: whether the policy sampled the token, so that it is trained on.
        logprobs: log-probability of each sampled token under the distribution that it was drawn from; 0 for others.
        versions: version of the weights that sampled the token; ``NO_VERSION`` for others.
        truncated: whether it ended at the length limit.
        routed_experts: int16 [tokens - 1, layers, k], as in ``Completion``; ``None`` if they were not recorded.
        metadata: further facts for logs and files, of JSON's types.
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    truncated: bool = False
    routed_experts: Any = field(default=None, compare=False)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_completion(cls, prompt_ids: Sequence[int], completion: Completion) -> Trajectory:
        """One prompt and its completion."""
        n_prompt, n_sampled = len(prompt_ids), len(completion.token_ids)
        return cls(
            (*prompt_ids, *completion.token_ids),
            (False,) * n_prompt + (True,) * n_sampled,
            (0.0,) * n_prompt + tuple(completion.logprobs),
            (NO_VERSION,) * n_prompt + tuple(completion.versions),
            truncated=completion.stop_reason == "length",
            routed_experts=completion.routed_experts,
        )

    @property
    def n_sampled(self) -> int:
        """Number of tokens that the policy sampled."""
        return sum(self.loss_mask)


class Workflow(Protocol):
    """Turns one record into the trajectories of its group. One instance serves all records of a run at the same time.

    A workflow awaits whatever it needs, such as completions of ``client`` or tools. Its result must depend on the
    record, the seeds and the completions alone, so that a resumed run repeats it.
    """

    async def run(
        self, client: Any, record: Mapping[str, Any], seeds: Sequence[int]
    ) -> Sequence[tuple[Trajectory, float]] | None:
        """The trajectories of the record, each with its reward.

        Args:
            client: an ``archon_core.contracts.serving.RolloutClient``.
            record: of the data set.
            seeds: one per sample; equal seeds and weights give equal trajectories.

        Returns:
            ``None`` to leave the record out.
        """
