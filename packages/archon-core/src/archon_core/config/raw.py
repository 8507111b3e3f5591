"""A YAML file as a tree of texts, without type inference.

YAML would turn ``off`` into a boolean, ``012`` into ten and ``1:30`` into ninety. Options have declared types, so the
tree keeps the texts, and ``archon_core.config.typed`` converts them once the schema is known. Every node has its source
location.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from archon_core.errors import ConfigError

NULLS = frozenset({"", "~", "null", "Null", "NULL"})
MAX_REFERENCES = 64
REFERENCE = re.compile(r"(?<!\\)\$\{(?P<dots>\.*)(?P<name>[\w.]+)\}")
"""A plain reference to an option; leading dots make it relative to its section."""

# An even number of backslashes before '${' is an escape for half as many; an odd number escapes '${' itself.
_INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")


def whole_text(text: str) -> str | None:
    """``text`` with escaped surrogate pairs joined; ``None`` if an unpaired surrogate remains."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return None


@dataclass(frozen=True)
class RawScalar:
    """One value as text, without its quotes.

    Attributes:
        plain: whether it has no quotes, so that ``null`` means null.
        source: file and line, or the override.
    """

    text: str
    plain: bool = True
    source: str = field(default="", compare=False)

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in NULLS

    @property
    def is_interpolated(self) -> bool:
        """Whether it refers to another option with ``${...}``."""
        return _INTERPOLATION.search(self.text) is not None


@dataclass(frozen=True)
class RawList:
    """A sequence."""

    items: tuple[RawNode, ...]
    source: str = field(default="", compare=False)


@dataclass(frozen=True)
class RawMapping:
    """A section. ``source`` is the location of its name."""

    entries: Mapping[str, RawNode]
    source: str = field(default="", compare=False)

    def get(self, path: str) -> RawNode | None:
        """The node at a dotted path, or ``None``."""
        node: RawNode = self
        for key in path.split("."):
            if not isinstance(node, RawMapping) or key not in node.entries:
                return None
            node = node.entries[key]
        return node


RawNode: TypeAlias = RawScalar | RawList | RawMapping


def walk(node: RawNode, path: str = "") -> Iterator[tuple[str, RawNode]]:
    """All nodes below ``node`` with their dotted paths, parents first. Items of lists are not entered."""
    if isinstance(node, RawMapping):
        for key, child in node.entries.items():
            child_path = f"{path}.{key}" if path else key
            yield child_path, child
            yield from walk(child, child_path)


def nested(path: str, node: RawNode) -> RawMapping:
    """The tree that contains only ``node``, at a dotted path."""
    for key in reversed(path.split(".")):
        node = RawMapping({key: node}, node.source)
    assert isinstance(node, RawMapping)
    return node


def merge(base: RawMapping, over: RawMapping, path: str = "") -> RawMapping:
    """``base`` overridden by ``over``. Sections are merged; lists and values are replaced.

    Raises:
        ConfigError: ``over`` sets a part of a single value of ``base``.
    """
    entries = dict(base.entries)
    for key, node in over.entries.items():
        below = f"{path}.{key}" if path else key
        old = entries.get(key)
        if not isinstance(node, RawMapping) or old is None or (isinstance(old, RawScalar) and old.is_null):
            entries[key] = node
        elif isinstance(old, RawMapping):
            entries[key] = merge(old, node, below)
        else:
            found = f"{old.text!r}" if isinstance(old, RawScalar) else "a list"
            raise ConfigError(
                f"{node.source}: sets a part of {below}, which is {found} ({old.source}); write {below} as a section, "
                "or replace it as a whole"
            )
    return RawMapping(MappingProxyType(entries), over.source or base.source)


def prune(tree: RawMapping, drop: Callable[[str, RawNode], bool], path: str = "") -> RawMapping:
    """``tree`` without the nodes for which ``drop`` is true."""
    entries: dict[str, RawNode] = {}
    for key, node in tree.entries.items():
        below = f"{path}.{key}" if path else key
        if drop(below, node):
            continue
        entries[key] = prune(node, drop, below) if isinstance(node, RawMapping) else node
    return RawMapping(MappingProxyType(entries), tree.source)


def follow(tree: RawMapping, option: str) -> tuple[str, RawNode | None]:
    """The option that ``option`` refers to, following ``${other.option}``, and its node."""
    for _ in range(MAX_REFERENCES):
        node = tree.get(option)
        reference = REFERENCE.fullmatch(node.text.strip()) if isinstance(node, RawScalar) else None
        if reference is None or reference["dots"]:
            break
        option = reference["name"]
    return option, node


def shown(node: RawNode) -> str:
    """A value for messages: short, on one line."""
    if isinstance(node, RawScalar):
        text = "null" if node.is_null else node.text
    elif isinstance(node, RawList):
        text = "[" + ", ".join(shown(item) for item in node.items) + "]"
    else:
        text = "{" + ", ".join(f"{key}: {shown(child)}" for key, child in node.entries.items()) + "}"
    return text if len(text) <= 60 else text[:57] + "..."
