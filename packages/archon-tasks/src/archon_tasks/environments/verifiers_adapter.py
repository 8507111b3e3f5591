"""The environment ``verifiers``: an environment of verifiers, with its rewards.

verifiers drives a conversation itself and calls a client for each turn of the model. Here its ``run_rollout`` runs as a
task whose client hands every prompt to the workflow, and waits for the answer. So environments keep their own loops,
stop conditions and rubrics.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from archon_core.errors import ArchonError, ConfigError, DataError
from archon_tasks.environments.options import OPTION, read_options
from archon_tasks.environments.verifiers_loading import load_verifiers

ROW = "verifiers"
"""Field of a record that holds the row of verifiers' data set."""


class VerifiersError(ArchonError):
    """A conversation that an environment of verifiers ended with an error, or that cannot be trained on."""


def verifiers_environment(options: Mapping[str, Any], seed: int) -> VerifiersEnvironment:
    """Build the environment of a sample; an ``EnvironmentFactory``. verifiers has no seeds.

    Raises:
        ConfigError: verifiers or the environment is missing, or an option is unknown.
    """
    read = read_options("verifiers", options, {"environment": "", "arguments": {}})
    environment = load_verifiers(read["environment"], read["arguments"], option=f"{OPTION}.environment")
    if environment.requires_group_rollouts:
        raise ConfigError(
            f"{OPTION}.environment: found {read['environment']!r}, whose rubric compares the samples of a group; "
            "allowed are environments that score every sample alone"
        )
    return VerifiersEnvironment(environment)


class VerifiersEnvironment:
    """One conversation.

    Args:
        environment: of verifiers.
    """

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._prompts: asyncio.Queue[tuple[list[Any], list[Any]]] = asyncio.Queue()
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._rollout: asyncio.Task[Mapping[str, Any]] | None = None
        self._seen: list[dict[str, Any]] = []
        self._metrics: dict[str, float] = {}
        self.tools: list[Mapping[str, Any]] = []

    async def reset(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See ``Environment``. The record is one of the data set ``verifiers``."""
        if ROW not in record:
            raise DataError(
                f"environment 'verifiers': found a record without the field {ROW!r}; set data.dataset=verifiers, or "
                "choose another environment"
            )
        client = _client(self._prompts, self._answers)
        self._rollout = asyncio.create_task(
            self._environment.run_rollout(dict(record[ROW]), client, model="policy", sampling_args={})
        )
        prompt = await self._next()
        if prompt is None:
            raise VerifiersError(
                f"environment 'verifiers': it ended before the model's first turn{self._how_it_ended()}"
            )
        self._seen = prompt
        return [_for_template(message) for message in prompt]

    async def step(self, message: Mapping[str, Any]) -> tuple[list[dict[str, Any]], float, bool]:
        """See ``Environment``. The whole reward belongs to the last step."""
        self._answers.put_nowait(message)
        prompt = await self._next()
        if prompt is None:
            return [], self._reward(), True
        n_seen = len(self._seen)
        is_continued = prompt[:n_seen] == self._seen and prompt[n_seen:][:1] and prompt[n_seen]["role"] == "assistant"
        if not is_continued:
            raise VerifiersError(
                "environment 'verifiers': it changed earlier messages of the conversation, whose sampled tokens cannot "
                "be kept then; run it with workflow=agent"
            )
        self._seen = prompt
        return [_for_template(one) for one in prompt[n_seen + 1 :]], 0.0, False

    def metrics(self) -> dict[str, float]:
        """See ``Environment``."""
        return self._metrics

    async def close(self) -> None:
        """End the conversation if it is not over."""
        if self._rollout is not None and not self._rollout.done():
            self._rollout.cancel()
            await asyncio.gather(self._rollout, return_exceptions=True)

    async def _next(self) -> list[dict[str, Any]] | None:
        """The next prompt; ``None`` once the conversation is over."""
        assert self._rollout is not None
        waiting = asyncio.ensure_future(self._prompts.get())
        try:
            await asyncio.wait({waiting, self._rollout}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not waiting.done():
                waiting.cancel()
        if not waiting.done() or waiting.cancelled():
            return None
        messages, tools = waiting.result()
        self.tools = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)},
            }
            for tool in tools
        ]
        return [_plain(message) for message in messages]

    def _reward(self) -> float:
        assert self._rollout is not None
        output = self._rollout.result()
        if output.get("error") or output["reward"] is None:
            raise VerifiersError(f"environment 'verifiers': the conversation failed{self._how_it_ended()}")
        metrics = output.get("metrics") or {}
        self._metrics = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        return float(output["reward"])

    def _how_it_ended(self) -> str:
        assert self._rollout is not None
        if self._rollout.exception() is not None:
            raise VerifiersError("environment 'verifiers': it raised") from self._rollout.exception()
        error = self._rollout.result().get("error")
        return f": {error}" if error else ""


def _client(prompts: asyncio.Queue[Any], answers: asyncio.Queue[Any]) -> Any:
    """A client of verifiers whose model is the other ends of two queues."""
    from verifiers.clients import Client
    from verifiers.types import Response, ResponseMessage, ToolCall

    class QueueClient(Client):  # type: ignore[misc]
        def setup_client(self, config: Any) -> None:
            return None

        async def to_native_tool(self, tool: Any) -> Any:
            return tool

        async def to_native_prompt(self, messages: Any) -> tuple[Any, dict[str, Any]]:
            return messages, {}

        async def get_native_response(
            self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **kwargs: Any
        ) -> Any:
            prompts.put_nowait((list(prompt), list(tools or ())))
            return await answers.get()

        async def raise_from_native_response(self, response: Any) -> None:
            return None

        async def from_native_response(self, response: Mapping[str, Any]) -> Any:
            calls = [
                ToolCall(id=call["id"], name=call["function"]["name"], arguments=call["function"]["arguments"])
                for call in response.get("tool_calls") or ()
            ]
            message = ResponseMessage(
                content=response["content"],
                reasoning_content=response.get("reasoning_content") or None,
                tool_calls=calls or None,
                finish_reason="tool_calls" if calls else "stop",
                is_truncated=False,
            )
            return Response(id="policy", created=int(time.time()), model="policy", message=message)

        async def close(self) -> None:
            return None

    return QueueClient(None)


def _plain(message: Any) -> dict[str, Any]:
    """A copy of a message: verifiers may change the original later."""
    plain = message if isinstance(message, Mapping) else message.model_dump(exclude_none=True)
    return {name: deepcopy(value) for name, value in plain.items() if value is not None}


def _for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of verifiers as chat templates read it.

    Raises:
        VerifiersError: it has an image or audio.
    """
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = _text_of(content)
    return {**{name: value for name, value in message.items() if name != "tool_calls"}, "content": content}


def _text_of(parts: Sequence[Mapping[str, Any]]) -> str:
    kinds = {part.get("type") for part in parts} - {"text"}
    if kinds:
        raise VerifiersError(
            f"environment 'verifiers': found content of the types {sorted(map(str, kinds))}; only text is supported"
        )
    return "".join(part["text"] for part in parts)
