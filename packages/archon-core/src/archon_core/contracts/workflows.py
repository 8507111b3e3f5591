"""Workflows: how a record of the data becomes trajectories to train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from archon_core.contracts.spec import Spec

if TYPE_CHECKING:
    from archon_core.contracts.rollout import Completion, GenerationConfig
    from archon_core.contracts.serving import RolloutClient

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
        reward: of the whole trajectory.
        truncated: whether it ended at the length limit.
        routed_experts: int16 [tokens - 1, layers, k], as in ``Completion``; ``None`` if they were not recorded.
        metadata: further facts for logs and files, of JSON's types.
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    reward: float = 0.0
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

    def extended(self, asked: Sequence[int], answer: Completion) -> Trajectory:
        """This conversation with a further turn.

        Args:
            asked: the prompt of the turn: ``token_ids``, followed by ids that the policy did not sample.
            answer: the completion of ``asked``.
        """
        n_new, n_sampled = len(asked) - len(self.token_ids), len(answer.token_ids)
        return replace(
            self,
            token_ids=(*asked, *answer.token_ids),
            loss_mask=(*self.loss_mask, *(False,) * n_new, *(True,) * n_sampled),
            logprobs=(*self.logprobs, *(0.0,) * n_new, *answer.logprobs),
            versions=(*self.versions, *(NO_VERSION,) * n_new, *answer.versions),
            truncated=answer.stop_reason == "length",
            routed_experts=answer.routed_experts,  # of all tokens but the last
        )

    @property
    def n_sampled(self) -> int:
        """Number of tokens that the policy sampled."""
        return sum(self.loss_mask)


@dataclass(frozen=True)
class WorkflowSpec(Spec):
    """A workflow, as ``workflow`` names it. ``target`` names a ``WorkflowFactory``.

    Attributes:
        gives_rewards: whether its trajectories have rewards without the run's reward function.
    """

    kind: ClassVar[str] = "workflow"
    hook: ClassVar[str] = "archon_workflows"

    gives_rewards: bool = False


class RecordRewards(Protocol):
    """The run's reward function (``reward``), with its processes and time limits."""

    async def __call__(self, record: Mapping[str, Any], completions: Sequence[Sequence[int]]) -> list[float]:
        """The reward of each completion, given as the token ids that were sampled.

        Raises:
            RewardsFailedError: a call failed; the group is dropped, counted and named.
        """


@dataclass(frozen=True)
class WorkflowParts:
    """What a workflow works with.

    Attributes:
        tokenizer: a ``transformers`` tokenizer with an end-of-text token.
        encode_prompt: token ids of a record's prompt, as the run encodes prompts.
        encode_messages: token ids of a conversation, ``(messages, tools) -> ids``, rendered by the chat template and
            followed by the start of an answer.
        options: sampling options (``gconfig``), with all stop tokens.
        rewards: scores completions; ``None`` if the run has no reward function.
    """

    tokenizer: Any
    encode_prompt: Callable[[Mapping[str, Any]], tuple[int, ...]]
    encode_messages: Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None], tuple[int, ...]]
    options: GenerationConfig
    rewards: RecordRewards | None = None


WORKFLOW_PARAMETERS = ("config", "parts")
"""The positional parameters of a ``WorkflowFactory``."""


class WorkflowFactory(Protocol):
    """``target`` of a ``WorkflowSpec``; or what ``workflow: my_module:my_workflow`` names."""

    def __call__(self, config: Any, parts: WorkflowParts) -> Workflow:
        """The workflow of a run. ``config`` is the whole configuration."""


class Workflow(Protocol):
    """Turns one record into the trajectories of its group. One instance serves all records of a run at the same time.

    A workflow awaits whatever it needs, such as completions of ``client`` or tools. Its result must depend on the
    record, the seeds and the completions alone, so that a resumed run repeats it.
    """

    async def run(
        self, client: RolloutClient, record: Mapping[str, Any], seeds: Sequence[int]
    ) -> Sequence[Trajectory] | None:
        """The trajectories of the record with their rewards; several may belong to one sample.

        Args:
            client: completes prompts.
            record: of the data set.
            seeds: one per sample; equal seeds and weights give equal trajectories.

        Returns:
            ``None`` to leave the record out.
        """
