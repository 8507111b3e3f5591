"""Tools, and the parsers that read calls of tools and reasoning in sampled text."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from archon_core.contracts.spec import Spec


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool.

    Attributes:
        name: of the tool.
        arguments: by name, of JSON's types.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ParsedAnswer:
    """What a parser finds in an answer.

    Attributes:
        content: the text outside of calls.
        calls: in the order of the text.
        problems: one sentence for each malformed call, written for the model; such a call is in neither field.
    """

    content: str
    calls: tuple[ToolCall, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolParserSpec(Spec):
    """A format of tool calls, as ``tool_call_parser`` names it. ``target`` names a ``ToolParser``."""

    kind: ClassVar[str] = "tool_parser"
    hook: ClassVar[str] = "archon_tool_parsers"


class ToolParser(Protocol):
    """Reads and writes calls in one format. All methods are pure functions.

    ``tools`` are the tools on offer as JSON schemas, ``{"type": "function", "function": {"name", "description",
    "parameters"}}``, as chat templates get them.
    """

    @property
    def stop(self) -> Sequence[str]:
        """Texts that end an answer after a call, for a format in which the result continues the line of the call; empty
        if the answer ends with the end of the assistant's turn."""

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]] = ()) -> ParsedAnswer:
        """The calls in ``text``, which has no special tokens. Any text is valid input; never raises."""

    def write(self, calls: Sequence[ToolCall]) -> str:
        """The calls as a model writes them."""

    def write_results(self, results: Sequence[str]) -> str:
        """Text that follows the calls and holds their results, for a model without a chat template."""


@dataclass(frozen=True)
class ReasoningParserSpec(Spec):
    """A format of reasoning, as ``reasoning_parser`` names it. ``target`` names a ``ReasoningParser``."""

    kind: ClassVar[str] = "reasoning_parser"
    hook: ClassVar[str] = "archon_reasoning_parsers"


class ReasoningParser(Protocol):
    """``target`` of a ``ReasoningParserSpec``."""

    def __call__(self, text: str) -> tuple[str, str]:
        """Reasoning and the rest of an answer. Any text is valid input; never raises."""


@dataclass(frozen=True)
class ToolSpec(Spec):
    """A tool that a model may call. ``target`` names a ``Tool``, which is described by its docstring and type hints.

    Attributes:
        place: where it runs: ``tool_process``, a process with a time limit; ``sandbox``, a process with limits of time,
            memory, files and processes as well; or ``here``, in the process of the workflow, for a tool whose work is
            bounded.
    """

    kind: ClassVar[str] = "tool"
    hook: ClassVar[str] = "archon_tools"

    place: str = "tool_process"


class Tool(Protocol):
    """A function that a model may call; also what ``tools.names`` may name as ``module:function``.

    Its parameters have type hints of JSON's types, and its docstring describes it, with an ``Args`` section for the
    parameters. An attribute ``tool_schema`` with ``description`` and ``parameters`` (a JSON schema) replaces both.
    """

    def __call__(self, **arguments: Any) -> Any | Awaitable[Any]:
        """The result: text, or a value that becomes JSON. The model gets the message of an exception."""
