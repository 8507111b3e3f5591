"""Replaces AReaL's option names with Archon's, in keys and inside references."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import MappingProxyType

from archon_core.config.raw import REFERENCE, RawList, RawMapping, RawNode, RawScalar, merge, nested, walk
from archon_core.errors import ConfigError
from archon_train.areal.keys import RENAMED, fits


def rename(tree: RawMapping, keep: frozenset[str] = frozenset()) -> RawMapping:
    """``tree`` with AReaL's option names replaced by Archon's, also inside ``${...}``.

    Args:
        tree: the raw tree; relative references become absolute.
        keep: top-level names to leave alone, because a plugin has a section of that name.

    Raises:
        ConfigError: an option is set under both names.
    """
    moved: list[tuple[str, str, RawNode]] = []

    def stay(section: RawMapping, path: str) -> RawMapping:
        entries: dict[str, RawNode] = {}
        for key, node in section.entries.items():
            below = f"{path}.{key}" if path else key
            target = new_name(below, keep)
            if target is not None:
                moved.append((below, target, _rewritten(node, below, keep)))
            elif isinstance(node, RawMapping):
                entries[key] = stay(node, below)
            else:
                entries[key] = _rewritten(node, below, keep)
        return RawMapping(MappingProxyType(entries), section.source)

    result = stay(tree, "")
    for old, new, node in moved:
        for path, leaf in _leaves(new, node):
            there = result.get(path)
            if there is not None and not isinstance(there, RawMapping) and there != leaf:
                raise ConfigError(
                    f"{leaf.source}: found {old}, AReaL's name for {new}, "
                    f"and {path} as well ({there.source}); remove one"
                )
        result = merge(result, nested(new, node))
    return rename(result, keep) if moved else result  # a moved section may hold names to replace


def new_name(path: str, keep: frozenset[str] = frozenset()) -> str | None:
    """Archon's name of AReaL's option ``path``; ``None`` if it is the same."""
    keys = path.split(".")
    if keys[0] in keep:
        return None
    for old, new in RENAMED.items():
        length = len(old.split("."))
        if fits(old, ".".join(keys[:length])):
            renamed = ".".join([new.replace("*", keys[0]), *keys[length:]])
            return new_name(renamed, keep) or renamed
    return None


def _rewritten(node: RawNode, path: str, keep: frozenset[str]) -> RawNode:
    """``node`` with references made absolute and renamed."""
    if isinstance(node, RawMapping):
        entries = {key: _rewritten(child, f"{path}.{key}", keep) for key, child in node.entries.items()}
        return RawMapping(MappingProxyType(entries), node.source)
    if isinstance(node, RawList):
        return RawList(tuple(_rewritten(item, path, keep) for item in node.items), node.source)
    if not node.is_interpolated:
        return node

    def absolute(match: re.Match[str]) -> str:
        name = match["name"]
        if match["dots"]:
            name = ".".join([*path.split(".")[: -len(match["dots"])], name])
        return f"${{{new_name(name, keep) or name}}}"

    return RawScalar(REFERENCE.sub(absolute, node.text), node.plain, node.source)


def _leaves(path: str, node: RawNode) -> Iterator[tuple[str, RawNode]]:
    if not isinstance(node, RawMapping):
        yield path, node
        return
    for below, child in walk(node, path):
        if not isinstance(child, RawMapping):
            yield below, child
