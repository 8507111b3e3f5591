"""Options of the workflows ``tools`` and ``environment``. Imports no torch: configurations load this module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from archon_core.config.rules import POSITIVE, SHARE, number, option
from archon_core.contracts.environments import ENVIRONMENT_PARAMETERS, EnvironmentSpec
from archon_core.contracts.spec import Spec
from archon_core.contracts.tool_calls import ReasoningParserSpec, ToolParserSpec, ToolSpec
from archon_core.errors import ArchonError
from archon_core.plugins import registry
from archon_core.plugins.own_or_plugin import choose

_SECONDS = number(above=0)

NO_ENVIRONMENT = (
    "environment.name: found null with workflow=environment; name an environment of 'archon plugins', or "
    "module:function of a Python file in the working directory"
)
"""The problem of the workflow ``environment`` without an environment."""


@dataclass
class ToolsOptions:
    """Tools that a model may call in the workflow ``tools`` (``tools``).

    Attributes:
        names: tools by their names in ``archon plugins``, or ``module:function`` of a Python file in the working
            directory or in a folder of ``PYTHONPATH``.
        tool_call_parser: format in which the model writes calls.
        reasoning_parser: format of the reasoning before an answer, in which calls do not count; null for none.
        max_turns: largest number of turns of the model in a conversation.
        max_calls: largest number of calls in a conversation; further calls get an error as their result.
        processes: processes for tools of users, and as many sandbox processes.
        timeout_seconds: time limit of a call.
        memory_mb: MiB of memory that a call in a sandbox process may allocate.
        max_result_characters: longest result of a call; of a longer one, the model gets the beginning.
    """

    names: list[str] = field(default_factory=lambda: ["calculator"])
    tool_call_parser: str = "qwen"
    reasoning_parser: str | None = "qwen3"
    max_turns: int = option(8, POSITIVE)
    max_calls: int = option(16, POSITIVE)
    processes: int = option(2, POSITIVE)
    timeout_seconds: float = option(10.0, _SECONDS)
    memory_mb: int = option(256, POSITIVE)
    max_result_characters: int = option(2000, POSITIVE)

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.names:
            yield "names", "found none; name at least one, or set workflow=rlvr"
        for name in self.names:
            yield from _unknown("names", ToolSpec, name, None, "tools.names")
        yield from _unknown("tool_call_parser", ToolParserSpec, self.tool_call_parser)
        if self.reasoning_parser is not None:
            yield from _unknown("reasoning_parser", ReasoningParserSpec, self.reasoning_parser)


@dataclass
class EnvironmentOptions:
    """The environment of the workflow ``environment`` (``environment``).

    Attributes:
        name: of an environment in ``archon plugins``; or ``module:function``, as in ``tools.names``, of a function
            ``(options, seed)`` that returns the environment of one sample.
        options: options of the environment.
        max_turns: largest number of turns of the model in a conversation.
        discount: the reward of a trajectory is the sum of its steps' rewards, that of step t (from 0) times
            ``discount`` to the power of t.
        timeout_seconds: time limit of one call of the environment.
        tool_call_parser: format of tool calls, for environments with tools; null for messages without calls.
        reasoning_parser: format of the reasoning before an answer; null for none.
    """

    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    max_turns: int = option(16, POSITIVE)
    discount: float = option(1.0, SHARE)
    timeout_seconds: float = option(60.0, _SECONDS)
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.name is not None:
            yield from _unknown("name", EnvironmentSpec, self.name, ENVIRONMENT_PARAMETERS, "environment.name")
        if self.tool_call_parser is not None:
            yield from _unknown("tool_call_parser", ToolParserSpec, self.tool_call_parser)
        if self.reasoning_parser is not None:
            yield from _unknown("reasoning_parser", ReasoningParserSpec, self.reasoning_parser)


def _unknown(
    name: str, kind: type[Spec], value: str, parameters: tuple[str, ...] | None = None, own: str = ""
) -> Iterator[tuple[str, str]]:
    """The problem of an option whose value names neither a plugin nor, with ``own``, a user's function.

    Args:
        name: of the option, below its section.
        own: the whole name of an option that may name a user's function.
    """
    try:
        if own:
            choose(kind, value, parameters, registry(), option=own)
        else:
            registry().get(kind, value)
    except ArchonError as error:
        yield name, str(error).removeprefix(f"{own}: ")
