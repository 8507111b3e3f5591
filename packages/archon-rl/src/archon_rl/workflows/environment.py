"""``environment``: a conversation with an environment, which answers the model and rewards it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from archon_core.contracts.environments import EnvironmentFactory
from archon_core.contracts.rollout import GenerationRequest
from archon_core.contracts.serving import RolloutClient
from archon_core.contracts.tool_calls import ToolParser, ToolParserSpec
from archon_core.contracts.workflows import Trajectory, WorkflowParts
from archon_core.errors import ConfigError
from archon_core.plugins import registry
from archon_rl.environments.running import RunningEnvironment
from archon_rl.environments.source import environment_source
from archon_rl.fields import ASSISTANT
from archon_rl.workflows.next_turn import next_turn
from archon_rl.workflows.together import together
from archon_rl.workflows.tool_options import NO_ENVIRONMENT, EnvironmentOptions
from archon_rl.workflows.turns import TurnEncoder, reasoning_parser, with_stops


def environment(config: Any, parts: WorkflowParts) -> EnvironmentConversation:
    """Build the workflow; a ``WorkflowFactory``.

    Raises:
        ConfigError: no environment is named, or its factory cannot be imported.
        UnknownNameError: no plugin provides the environment or a parser.
    """
    options: EnvironmentOptions = config.environment
    if options.name is None:
        raise ConfigError(NO_ENVIRONMENT)
    parser: ToolParser | None = None
    if options.tool_call_parser is not None:
        parser = registry().get(ToolParserSpec, options.tool_call_parser).load()
        assert parser is not None
        parts = replace(parts, options=with_stops(parts.options, parser.stop))
    return EnvironmentConversation(
        parts=parts,
        options=options,
        factory=environment_source(options.name, registry()).load(),
        turns=TurnEncoder.of(config, parts),
        parser=parser,
        split_reasoning=reasoning_parser(options.reasoning_parser),
    )


@dataclass(frozen=True)
class EnvironmentConversation:
    """Talks with an environment per sample.

    Attributes:
        parts: of the run.
        options: section ``environment``.
        factory: builds an environment.
        turns: encodes what stands between turns.
        parser: reads tool calls; ``None`` for none.
        split_reasoning: takes the reasoning from an answer.
    """

    parts: WorkflowParts
    options: EnvironmentOptions
    factory: EnvironmentFactory
    turns: TurnEncoder
    parser: ToolParser | None
    split_reasoning: Callable[[str], tuple[str, str]]

    async def run(self, client: RolloutClient, record: Mapping[str, Any], seeds: Sequence[int]) -> Sequence[Trajectory]:
        """See ``Workflow``: one trajectory per seed."""
        return await together(self._sample(client, record, seed) for seed in seeds)

    async def _sample(self, client: RolloutClient, record: Mapping[str, Any], seed: int) -> Trajectory:
        name, options = str(self.options.name), dict(self.options.options)
        environment = RunningEnvironment(name, self.factory, options, seed, self.options.timeout_seconds)
        try:
            return await self._converse(client, environment, record, seed)
        finally:
            await environment.close()

    async def _converse(
        self, client: RolloutClient, environment: RunningEnvironment, record: Mapping[str, Any], seed: int
    ) -> Trajectory:
        messages = await environment.reset(record)
        tools = await environment.tools() or None
        prompt = self.turns.begin(messages, tools)
        [first] = await client.generate(GenerationRequest(prompt, replace(self.parts.options, n_samples=1), (seed,)))
        conversation, answer = Trajectory.from_completion(prompt, first), first.token_ids
        rewards: list[float] = []
        while True:
            messages, reward, done = await environment.step(self._message(answer, tools or ()))
            rewards.append(reward)
            if done or conversation.truncated or len(rewards) >= self.options.max_turns:
                break
            asked = self.turns.between(answer, messages, tools)
            conversation, completion = await next_turn(
                client, conversation, asked, self.parts.options, seed=seed, turn=len(rewards)
            )
            if completion is None:
                break
            answer = completion.token_ids
        total = sum(reward * self.options.discount**step for step, reward in enumerate(rewards))
        facts = {"turns": len(rewards), "done": done, **await environment.metrics()}
        return replace(conversation, reward=total, metadata=facts)

    def _message(self, answer: Sequence[int], tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """An answer as the environment gets it."""
        reasoning, text = self.split_reasoning(self.turns.decoded(answer, literally=self.parser is not None))
        message: dict[str, Any] = {"role": ASSISTANT, "content": text}
        if self.options.reasoning_parser is not None:
            message["reasoning_content"] = reasoning
        if self.parser is not None:
            parsed = self.parser.parse(text, tools)
            message["content"] = parsed.content
            message["tool_calls"] = [
                {
                    "id": f"call_{number}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)},
                }
                for number, call in enumerate(parsed.calls)
            ]
            message["problems"] = list(parsed.problems)
        return message
