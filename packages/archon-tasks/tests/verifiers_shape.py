"""The part of verifiers 0.1.14's interface that the adapter uses, for machines without verifiers.

``test_verifiers_environment`` runs the same tests with verifiers itself where that is installed.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any


class _Message(dict):
    """A message of verifiers has its fields as attributes and as items."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def model_dump(self, *, exclude_none: bool = False) -> dict[str, Any]:
        return {name: value for name, value in self.items() if value is not None or not exclude_none}


class ToolCall(_Message):
    """Made from ``id``, ``name`` and ``arguments``."""


class ResponseMessage(_Message):
    """Has the role of the assistant."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(role="assistant", **fields)


@dataclass
class Response:
    id: str
    created: int
    model: str
    message: _Message


class Client:
    def __init__(self, client_or_config: Any) -> None:
        self._client = client_or_config

    async def get_response(self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **kwargs: Any) -> Any:
        native, extra = await self.to_native_prompt(prompt)
        tools = None if tools is None else [await self.to_native_tool(tool) for tool in tools]
        answer = await self.get_native_response(native, model, sampling_args, tools, **extra, **kwargs)
        await self.raise_from_native_response(answer)
        return await self.from_native_response(answer)


class Rubric:
    def __init__(self, funcs: Any = ()) -> None:
        self.funcs = list(funcs)
        self.has_group_rewards = any("completions" in func.__code__.co_varnames for func in self.funcs)


class MultiTurnEnv:
    def __init__(self, dataset: Any = None, eval_dataset: Any = None, rubric: Any = None, max_turns: int = -1) -> None:
        self.dataset, self.eval_dataset, self.rubric, self.max_turns = dataset, eval_dataset, rubric, max_turns
        self.tool_defs: list[Any] = []

    @property
    def requires_group_rollouts(self) -> bool:
        return self.rubric.has_group_rewards

    def get_dataset(self) -> Any:
        return self.dataset

    def build_eval_dataset(self) -> None:
        pass

    async def setup_state(self, state: dict[str, Any]) -> None:
        pass

    async def run_rollout(self, input: Any, client: Client, model: str, sampling_args: Any) -> dict[str, Any]:
        state: dict[str, Any] = {**input, "prompt": [_Message(one) for one in input["prompt"]], "trajectory": []}
        state["error"], turns = None, 0
        messages = list(state["prompt"])
        try:
            await self.setup_state(state)
            while True:
                answer = await client.get_response(messages, model, sampling_args, self.tool_defs or None)
                messages, turns = [*messages, answer.message], turns + 1
                if turns == self.max_turns:
                    break
                more = await self.env_response(messages, state)
                if state.get("final_env_response") is not None:
                    break
                messages = [*messages, *(_Message(one) for one in more)]
        except LookupError as error:
            state["error"] = error
        state["completion"] = messages[len(state["prompt"]) :]
        metrics = {
            func.__name__: await func(**{name: state.get(name) for name in _parameters(func)}, state=state)
            for func in self.rubric.funcs
        }
        return {"reward": sum(metrics.values()), "metrics": {**metrics, "num_turns": turns}, "error": state["error"]}


class ToolEnv(MultiTurnEnv):
    def __init__(self, tools: Any, **fields: Any) -> None:
        super().__init__(**fields)
        self.tools = {tool.__name__: tool for tool in tools}
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        self.tool_defs = [
            SimpleNamespace(name=name, description=tool.__doc__, parameters=schema) for name, tool in self.tools.items()
        ]

    async def env_response(self, messages: Any, state: Any) -> Any:
        import json

        calls = messages[-1].tool_calls
        if not calls:
            state["final_env_response"] = []
            return []
        return [
            {
                "role": "tool",
                "tool_call_id": call.id,
                "content": str(await self.tools[call.name](**json.loads(call.arguments))),
            }
            for call in calls
        ]


def _parameters(func: Any) -> list[str]:
    names = func.__code__.co_varnames[: func.__code__.co_argcount]
    return [name for name in names if name != "state"]


def load_environment(name: str, **arguments: Any) -> Any:
    return importlib.import_module(name.replace("-", "_")).load_environment(**arguments)


def as_modules() -> dict[str, ModuleType]:
    """The modules to put into ``sys.modules``."""
    root, clients, types = ModuleType("verifiers"), ModuleType("verifiers.clients"), ModuleType("verifiers.types")
    for name in ("MultiTurnEnv", "ToolEnv", "Rubric", "load_environment"):
        setattr(root, name, getattr(sys.modules[__name__], name))
    root.__version__, clients.Client = "0.1.14", Client
    types.Response, types.ResponseMessage, types.ToolCall = Response, ResponseMessage, ToolCall
    return {"verifiers": root, "verifiers.clients": clients, "verifiers.types": types}
