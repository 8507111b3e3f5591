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
from archon_engine.models.turns import encode_next_text
from archon_rl.text_encoding import TextEncoder
from archon_rl.workflows.next_turn import next_turn
from archon_rl.workflows.options import NO_REWARD, PROMPT, MultiTurnOptions
from archon_rl.workflows.together import together
from archon_rl.workflows.turns import TurnEncoder


def multi_turn(config: Any, parts: WorkflowParts) -> MultiTurn:
    """Build the workflow; a ``WorkflowFactory``.

    Raises:
        ConfigError: there is no reward, which tells right answers from wrong ones; or the feedback cannot be encoded.
    """
    if parts.rewards is None:
        raise ConfigError(NO_REWARD)
    encoder = TextEncoder(parts.tokenizer, config.data.prompt_key, None)
    workflow = MultiTurn(parts, config.multi_turn, encoder, TurnEncoder.of(config, parts))
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
        turns: encodes feedback as a user's message.
    """

    parts: WorkflowParts
    options: MultiTurnOptions
    encoder: TextEncoder
    turns: TurnEncoder

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
        if self.turns.is_plain:  # an answer ends like those that a warm start learns from
            return encode_next_text(self.parts.tokenizer, answered, text)
        return self.turns.between(answered, [{"role": "user", "content": text}])

    async def _score(self, record: Mapping[str, Any], completions: Sequence[Completion]) -> list[float]:
        assert self.parts.rewards is not None, "the factory refuses runs without rewards"
        return await self.parts.rewards(record, [one.token_ids for one in completions])

    def _solved(self, rewards: Sequence[float]) -> dict[str, bool]:
        """For every turn, whether an answer was right by then."""
        return {
            f"solved_by_turn_{turn}": any(one > self.options.solved_above for one in rewards[:turn])
            for turn in range(1, self.options.max_turns + 1)
        }
