"""``multi_turn``: answer, and after a wrong answer, get feedback and answer again.

A trajectory is the whole conversation; its loss mask covers the sampled answers alone. As in AReaL's workflow of the
name, the reward is that of the last answer, times ``turn_discount`` for every turn after the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from archon_core.contracts.rollout import Completion, GenerationRequest
from archon_core.contracts.serving import RolloutClient
from archon_core.contracts.workflows import Trajectory, WorkflowParts
from archon_core.errors import ConfigError, DataError
from archon_engine.models.turns import encode_next_text, encode_next_turn
from archon_rl.text_encoding import TextEncoder
from archon_rl.workflows.next_turn import next_turn
from archon_rl.workflows.options import PROMPT, MultiTurnOptions
from archon_rl.workflows.together import together


def multi_turn(config: Any, parts: WorkflowParts) -> MultiTurn:
    """Build the workflow; a ``WorkflowFactory``.

    Raises:
        ConfigError: there is no reward, which tells right answers from wrong ones; or the feedback cannot be encoded.
    """
    if parts.rewards is None:
        raise ConfigError(
            "workflow: found multi_turn without a reward, which tells right answers from wrong ones; set reward, or "
            "workflow=rlvr"
        )
    uses_template = config.tokenizer.use_chat_template and parts.tokenizer.chat_template is not None
    encoder = TextEncoder(parts.tokenizer, config.data.prompt_key, None)
    workflow = MultiTurn(parts, config.multi_turn, encoder, uses_template)
    try:
        workflow.feedback((), "")
    except DataError as error:
        raise ConfigError(f"multi_turn.feedback: {error}") from error
    return workflow


@dataclass(frozen=True)
class MultiTurn:
    """Tries again after wrong answers.

    Attributes:
        parts: of the run.
        options: section ``multi_turn``.
        encoder: reads prompts.
        uses_template: whether the tokenizer's chat template renders prompts.
    """

    parts: WorkflowParts
    options: MultiTurnOptions
    encoder: TextEncoder
    uses_template: bool

    async def run(self, client: RolloutClient, record: Mapping[str, Any], seeds: Sequence[int]) -> Sequence[Trajectory]:
        """See ``Workflow``: one trajectory per seed."""
        prompt = self.parts.encode_prompt(record)
        completions = await client.generate(GenerationRequest(prompt, self.parts.options, tuple(seeds)))
        firsts = [Trajectory.from_completion(prompt, one) for one in completions]
        rewards = await self._score(record, completions)
        return await together(
            self._continue(client, record, first, reward, seed)
            for first, reward, seed in zip(firsts, rewards, seeds, strict=True)
        )

    async def _continue(
        self, client: RolloutClient, record: Mapping[str, Any], conversation: Trajectory, reward: float, seed: int
    ) -> Trajectory:
        """The conversation with further answers until one is right."""
        rewards, prompt = [reward], self.encoder.prompt(record)
        while rewards[-1] <= self.options.solved_above and len(rewards) < self.options.max_turns:
            asked = self.feedback(conversation.token_ids, prompt)
            conversation, answer = await next_turn(
                client, conversation, asked, self.parts.options, seed=seed, turn=len(rewards)
            )
            if answer is None:
                break
            rewards += await self._score(record, [answer])
        return replace(
            conversation,
            reward=rewards[-1] * self.options.turn_discount ** (len(rewards) - 1),
            metadata={"turns": len(rewards), **self._solved(rewards)},
        )

    def feedback(self, answered: Sequence[int], prompt: str) -> tuple[int, ...]:
        """The ids between a wrong answer and the next one.

        Args:
            answered: ids up to and including the answer.
            prompt: of the record.
        """
        text = self.options.feedback.replace(PROMPT, prompt)
        if self.uses_template:
            return encode_next_turn(self.parts.tokenizer, answered, [{"role": "user", "content": text}])
        return encode_next_text(self.parts.tokenizer, answered, text)

    async def _score(self, record: Mapping[str, Any], completions: Sequence[Completion]) -> list[float]:
        assert self.parts.rewards is not None, "the factory refuses runs without rewards"
        return await self.parts.rewards(record, [one.token_ids for one in completions])

    def _solved(self, rewards: Sequence[float]) -> dict[str, bool]:
        """For every turn, whether an answer was right by then."""
        return {
            f"solved_by_turn_{turn}": any(one > self.options.solved_above for one in rewards[:turn])
            for turn in range(1, self.options.max_turns + 1)
        }
