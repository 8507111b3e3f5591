"""``tools``: a conversation in which the model may call tools before it answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from archon_core.contracts.rollout import GenerationRequest
from archon_core.contracts.serving import RolloutClient
from archon_core.contracts.tool_calls import ToolCall, ToolParser, ToolParserSpec
from archon_core.contracts.workflows import Trajectory, WorkflowParts
from archon_core.errors import ConfigError, DataError
from archon_core.plugins import registry
from archon_rl.fields import Fields
from archon_rl.tools.calls import ToolResult, failure
from archon_rl.tools.source import tool_source
from archon_rl.tools.toolbox import ToolBox
from archon_rl.workflows.next_turn import next_turn
from archon_rl.workflows.together import together
from archon_rl.workflows.turns import TurnEncoder, reasoning_parser, with_stops

logger = logging.getLogger(__name__)


def tools(config: Any, parts: WorkflowParts) -> ToolUse:
    """Build the workflow; a ``WorkflowFactory``.

    Raises:
        ConfigError: a tool cannot be imported or described, or the chat template cannot render results.
        UnknownNameError: no plugin provides a tool or parser.
    """
    options, known = config.tools, registry()
    parser: ToolParser = known.get(ToolParserSpec, options.tool_call_parser).load()
    turns = TurnEncoder.of(config, parts)
    if parser.stop and not turns.is_plain:
        raise ConfigError(
            f"tools.tool_call_parser: found {options.tool_call_parser!r}, whose results continue the line of the call, "
            "with a chat template, which writes them into messages; choose another parser, or set "
            "tokenizer.use_chat_template=false"
        )
    box = ToolBox(
        [tool_source(name, known) for name in options.names],
        processes=options.processes,
        timeout=options.timeout_seconds,
        memory_mb=options.memory_mb,
        longest=options.max_result_characters,
    )
    if not turns.is_plain:
        _check_template(turns, box)
    return ToolUse(
        parts=replace(parts, options=with_stops(parts.options, parser.stop)),
        fields=Fields(config.data.prompt_key, None),
        turns=turns,
        parser=parser,
        split_reasoning=reasoning_parser(options.reasoning_parser),
        box=box,
        max_turns=options.max_turns,
        max_calls=options.max_calls,
    )


@dataclass
class _Use:
    """Tool calls of one sample."""

    calls: int = 0
    failures: int = 0


@dataclass(frozen=True)
class ToolUse:
    """Answers with tools. The reward gets the last turn.

    Attributes:
        parts: of the run; the sampling options end a turn after a call.
        fields: reads the prompt of a record.
        turns: encodes what stands between turns.
        parser: reads calls.
        split_reasoning: takes the reasoning from an answer.
        box: calls tools.
        max_turns: largest number of turns.
        max_calls: largest number of calls.
    """

    parts: WorkflowParts
    fields: Fields
    turns: TurnEncoder
    parser: ToolParser
    split_reasoning: Callable[[str], tuple[str, str]]
    box: ToolBox
    max_turns: int
    max_calls: int

    async def run(self, client: RolloutClient, record: Mapping[str, Any], seeds: Sequence[int]) -> Sequence[Trajectory]:
        """See ``Workflow``: one trajectory per seed."""
        prompt = self._prompt(record)
        completions = await client.generate(GenerationRequest(prompt, self.parts.options, tuple(seeds)))
        firsts = [(Trajectory.from_completion(prompt, one), one.token_ids) for one in completions]
        samples = await together(
            self._continue(client, first, answer, seed) for (first, answer), seed in zip(firsts, seeds, strict=True)
        )
        if self.parts.rewards is None:
            return [conversation for conversation, _ in samples]
        rewards = await self.parts.rewards(record, [answer for _, answer in samples])
        return [
            replace(conversation, reward=reward) for (conversation, _), reward in zip(samples, rewards, strict=True)
        ]

    def _prompt(self, record: Mapping[str, Any]) -> tuple[int, ...]:
        if self.turns.is_plain:
            return self.parts.encode_prompt(record)
        value = self.fields.prompt(record)
        messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
        return self.turns.begin(messages, self.box.schemas)

    async def _continue(
        self, client: RolloutClient, conversation: Trajectory, answer: tuple[int, ...], seed: int
    ) -> tuple[Trajectory, tuple[int, ...]]:
        """The whole conversation, and the tokens of its last turn."""
        use, n_turns = _Use(), 1
        while not conversation.truncated and n_turns < self.max_turns:
            results = await self._results(answer, use)
            if not results:
                break
            asked = self._between(answer, results)
            conversation, completion = await next_turn(
                client, conversation, asked, self.parts.options, seed=seed, turn=n_turns
            )
            if completion is None:
                break
            answer = completion.token_ids
            n_turns += 1
        facts = {"turns": n_turns, "tool_calls": use.calls, "tool_failures": use.failures}
        return replace(conversation, metadata=facts), answer

    async def _results(self, answer: Sequence[int], use: _Use) -> list[tuple[str, ToolResult]]:
        """Name and result of every call in an answer, malformed ones included; empty without any call."""
        _, text = self.split_reasoning(self.turns.decoded(answer, literally=True))
        parsed = self.parser.parse(text, self.box.schemas)
        results = await asyncio.gather(*(self._call(call, use) for call in parsed.calls))
        named = [(call.name, result) for call, result in zip(parsed.calls, results, strict=True)]
        named += [("", failure(problem)) for problem in parsed.problems]
        use.failures += sum(result.failed for _, result in named)
        return named

    async def _call(self, call: ToolCall, use: _Use) -> ToolResult:
        if use.calls >= self.max_calls:
            return failure(f"no calls are allowed after {self.max_calls}; answer without tools")
        use.calls += 1
        return await self.box.call(call)

    def _between(self, answer: Sequence[int], results: Sequence[tuple[str, ToolResult]]) -> tuple[int, ...]:
        """The tokens that follow an answer with calls."""
        texts = [self.turns.encodable(result.text) for _, result in results]
        if self.turns.is_plain:
            return self.turns.text(self.parser.write_results(texts))
        messages = [
            {"role": "tool", "content": text, **({"name": name} if name else {})}
            for (name, _), text in zip(results, texts, strict=True)
        ]
        return self.turns.between(answer, messages, self.box.schemas)


def _check_template(turns: TurnEncoder, box: ToolBox) -> None:
    """Raise if the chat template cannot render results; warn if it does not describe tools."""
    question = [{"role": "user", "content": "question"}]
    try:
        described = turns.begin(question, box.schemas) != turns.begin(question)
        turns.between((), [{"role": "tool", "content": "result", "name": "tool"}], box.schemas)
    except DataError as error:
        raise ConfigError(f"workflow: found 'tools', and {error}") from error
    if not described:
        logger.warning(
            "workflow 'tools': the tokenizer's chat template does not describe tools; the model learns about them from "
            "the messages of the records alone"
        )
