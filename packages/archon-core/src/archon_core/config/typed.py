"""Converts texts to the types of the schema, and collects all errors.

The option's type determines the conversion: a text option keeps ``off`` and ``1e4``, a number option parses or refuses
them. Values with ``${...}`` pass through; OmegaConf resolves and checks them.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archon_core.config.raw import RawList, RawMapping, RawNode, RawScalar
from archon_core.config.rules import shown_value
from archon_core.errors import did_you_mean

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""YAML's booleans, in lower case. They mean the same in a typed option and, without quotes, in a free-form section."""
_BOOLEANS = _WORDS | {"1": True, "0": False}
MAX_DIGITS = 300
"""Longer numbers are refused: Python itself does not parse or print thousands of digits."""
MAX_EXACT = 2**53
"""Floating-point numbers below this have exact whole numbers."""
_INTEGER = re.compile(r"[-+]?\d+(?:_\d+)*")
_FLOAT = re.compile(r"[-+]?(?:\d+(?:_\d+)*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?\.?inf", re.IGNORECASE)


@dataclass(frozen=True)
class Problem:
    """One error: its source location, and a found / allowed / fix sentence."""

    source: str
    text: str

    def __str__(self) -> str:
        return f"{self.source}: {self.text}" if self.source else self.text


@dataclass(frozen=True)
class Converted:
    """A tree in the schema's types.

    Attributes:
        values: the given values, as nested dicts.
        written: dotted name -> source, of every given option.
        problems: unknown options and wrong types, in the order of the file.
    """

    values: dict[str, Any]
    written: dict[str, str]
    problems: tuple[Problem, ...]


def convert(tree: RawMapping, schema: type) -> Converted:
    """Convert ``tree`` to the types of the dataclass ``schema``, without defaults."""
    reader = _Reader()
    values = reader.section(tree, schema, "")
    return Converted(values, reader.written, tuple(reader.problems))


def knows(schema: type, path: str) -> bool:
    """Whether the schema has an option or section of this dotted name. A free-form section has every name."""
    annotation: Any = schema
    for key in path.split("."):
        section = section_of(annotation)
        if section is None:
            return takes_anything(annotation)
        hints = field_types(section)
        if key not in hints:
            return False
        annotation = hints[key]
    return True


@functools.cache
def field_types(schema: type) -> dict[str, Any]:
    """Name -> type of the fields of a dataclass."""
    hints = typing.get_type_hints(schema)
    return {f.name: hints[f.name] for f in dataclasses.fields(schema)}


def section_of(annotation: Any) -> type | None:
    """The dataclass in an annotation ``D`` or ``D | None``."""
    for member in _members(annotation):
        if dataclasses.is_dataclass(member):
            return typing.cast(type, member)
    return None


def takes_anything(annotation: Any) -> bool:
    """Whether the type is a free-form section."""
    return any(m is Any or m is dict or typing.get_origin(m) is dict for m in _members(annotation))


def describe(annotation: Any) -> str:
    """The values of a type, in words."""
    return " or ".join(_describe_one(member) for member in _members(annotation))


_PLURALS = {str: "texts", Path: "paths", int: "whole numbers", float: "numbers"}
"""Types -> their values in a list, in words."""


class _UnreadableError(Exception):
    """A text that cannot be converted to its type."""


class _Reader:
    def __init__(self) -> None:
        self.written: dict[str, str] = {}
        self.problems: list[Problem] = []

    def section(self, tree: RawMapping, schema: type, path: str) -> dict[str, Any]:
        hints = field_types(schema)
        values: dict[str, Any] = {}
        for key, node in tree.entries.items():
            below = f"{path}.{key}" if path else key
            if key not in hints:
                self._unknown(key, below, node, path, list(hints))
                continue
            try:
                values[key] = self.value(node, hints[key], below)
            except _UnreadableError:
                allowed = describe(hints[key]) + _digits(node, hints[key])
                self._wrong(node, below, f"found {found(node)}; allowed is {allowed}")
        return values

    def value(self, node: RawNode, annotation: Any, path: str) -> Any:
        section = section_of(annotation)
        if section is not None and isinstance(node, RawMapping):
            # An empty section still counts as set: 'ref: {}' requests a reference model.
            self.written.setdefault(path, node.source)
            return self.section(node, section, path)
        self.written[path] = node.source
        if section is not None and node == RawScalar("") and type(None) not in _members(annotation):
            return {}  # 'rollout:' with nothing, or only comments, below it
        if isinstance(node, RawScalar) and node.is_interpolated:
            return node.text
        if isinstance(node, RawScalar) and node.text.strip() == "???":
            self._wrong(node, path, f"found '???', which stands for a value to give; give one, such as {path}=VALUE")
            return None
        if takes_anything(annotation) or {str, type(None)} <= set(_members(annotation)):
            self._refuse_python_null(node, path)
        return _read(node, annotation)

    def _refuse_python_null(self, node: RawNode, path: str) -> None:
        """Report a plain ``None``, which YAML reads as text although null is probably meant."""
        if isinstance(node, RawMapping):
            for key, child in node.entries.items():
                self._refuse_python_null(child, f"{path}.{key}")
        elif isinstance(node, RawList):
            for item in node.items:
                self._refuse_python_null(item, path)
        elif node.plain and node.text == "None":
            meant = "write null, or 'None' in quotes if you mean the text"
            self._wrong(node, path, f"found None, which YAML takes for a text; {meant}")

    def _unknown(self, key: str, path: str, node: RawNode, section: str, known: list[str]) -> None:
        where = f"in {section}" if section else "at the top"
        hint = did_you_mean(key, known)
        if not hint and "." in key:
            hint = "; nest the names, or write it as an override on the command line"
        elif not hint:
            hint = f"; known {where}: {', '.join(sorted(known))}"
        self.problems.append(Problem(node.source, f"unknown option {path}{hint}"))

    def _wrong(self, node: RawNode, path: str, text: str) -> None:
        self.problems.append(Problem(node.source, f"{path}: {text}"))


def _read(node: RawNode, annotation: Any) -> Any:
    """The value of one node: null if it is null, else the first type of a union that can parse it."""
    members = _members(annotation)
    if isinstance(node, RawScalar) and node.is_null and (type(None) in members or Any in members):
        return None
    for member in sorted(members, key=lambda m: m is str):
        try:
            return _read_one(node, member)
        except _UnreadableError:
            continue
    raise _UnreadableError


def _read_one(node: RawNode, kind: Any) -> Any:
    origin = typing.get_origin(kind)
    if kind is Any:
        return untyped(node)
    if origin in (list, tuple) or kind in (list, tuple):
        if not isinstance(node, RawList):
            raise _UnreadableError
        item = (typing.get_args(kind) or (Any,))[0]
        return [item_node.text if _passes(item_node) else _read(item_node, item) for item_node in node.items]
    if origin is dict or kind is dict:
        if not isinstance(node, RawMapping):
            raise _UnreadableError
        item = (typing.get_args(kind) or (str, Any))[1]
        return {k: child.text if _passes(child) else _read(child, item) for k, child in node.entries.items()}
    if dataclasses.is_dataclass(kind) or not isinstance(node, RawScalar):
        raise _UnreadableError
    return _read_scalar(node, kind, origin)


def _read_scalar(node: RawScalar, kind: Any, origin: Any) -> Any:
    text = node.text
    if kind is str or kind is Path:
        if node.is_null and text:
            raise _UnreadableError  # 'null' for a text that cannot be null: the user means something that it cannot do
        return text
    if kind is bool and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if kind is int and _INTEGER.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text)
    if kind is float and _FLOAT.fullmatch(text):
        return _float(text)
    if origin is typing.Literal:
        for choice in typing.get_args(kind):
            if text == str(choice):
                return choice
    if isinstance(kind, type) and issubclass(kind, enum.Enum) and text in kind.__members__:
        return kind[text]
    raise _UnreadableError


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf"))


def _passes(node: RawNode) -> typing.TypeGuard[RawScalar]:
    return isinstance(node, RawScalar) and node.is_interpolated


def untyped(node: RawNode) -> Any:
    """The value of a node in a free-form section: null, YAML's booleans, JSON's numbers, else text; quoted is text."""
    if isinstance(node, RawMapping):
        return {key: untyped(child) for key, child in node.entries.items()}
    if isinstance(node, RawList):
        return [untyped(item) for item in node.items]
    if not node.plain:
        return node.text
    if node.is_null:
        return None
    if node.text.lower() in _WORDS:
        return _WORDS[node.text.lower()]
    if re.fullmatch(r"-?(0|[1-9]\d*)", node.text) and len(node.text) <= MAX_DIGITS:
        return int(node.text)
    if _FLOAT.fullmatch(node.text) and math.isfinite(_float(node.text)) and re.search(r"[.eE]", node.text):
        return _float(node.text)
    return node.text


def found(node: RawNode) -> str:
    """A node as it is shown in messages."""
    if isinstance(node, RawMapping):
        return "a section"
    if isinstance(node, RawList):
        return "a list"
    if node.is_null:
        return "null"
    return shown_value(node.text)


def _digits(node: RawNode, annotation: Any) -> str:
    """The fix for a whole number with an exponent or a point, such as 1e4; empty for other values."""
    if int in _members(annotation) and isinstance(node, RawScalar) and _FLOAT.fullmatch(node.text):
        value = _float(node.text)
        if math.isfinite(value) and value.is_integer() and abs(value) < MAX_EXACT:
            return f"; write {int(value)}"
    return ""


def _members(annotation: Any) -> tuple[Any, ...]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return typing.get_args(annotation)
    return (annotation,)


def _describe_one(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return "a section"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin in (list, tuple):
        return f"a list of {_PLURALS.get(arguments[0]) or describe(arguments[0])}"
    if origin is dict or kind is dict:
        return "a section of any options"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return " or ".join(repr(name) for name in kind.__members__)
    names = {
        str: "a text (in quotes for 'null')",
        Path: "a path",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        type(None): "null",
        Any: "anything",
    }
    return names.get(kind, str(kind))
