"""Replaces AReaL's option names with Archon's, in keys and inside references."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType

from archon_core.config.raw import (
    MAX_REFERENCES,
    REFERENCE,
    RawList,
    RawMapping,
    RawNode,
    RawScalar,
    merge,
    nested,
    prune,
    shown,
    walk,
)
from archon_core.errors import ConfigError
from archon_train.areal.facts import same_values
from archon_train.areal.keys import RENAMED, fits
from archon_train.areal.raw_options import is_override


def rename(tree: RawMapping, keep: frozenset[str] = frozenset()) -> RawMapping:
    """``tree`` with AReaL's option names replaced by Archon's, also inside ``${...}``.

    Args:
        tree: the raw tree; relative references become absolute.
        keep: top-level names to leave alone, because a plugin has a section of that name.

    Raises:
        ConfigError: an option has different values under its two names.
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
        result = _with_moved(result, old, new, node)
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


def _with_moved(tree: RawMapping, old: str, new: str, node: RawNode) -> RawMapping:
    """``tree`` with ``node``, which had the name ``old``, under ``new``.

    A file may write both names if their values agree, such as a reference of one to the other. The sources of moved
    options show their old names, which the messages about them lack.
    """
    if isinstance(node, RawMapping):  # keeps empty sections
        tree = merge(tree, nested(new, prune(node, lambda _, child: not isinstance(child, RawMapping))))
    for path, leaf in _leaves(new, node):
        there, written = tree.get(path), old + path.removeprefix(new)
        if there is None or isinstance(there, RawMapping):
            tree = merge(tree, _moved_leaf(path, leaf, written))
            continue
        theirs, ours = _value(leaf, path, tree), _value(there, path, tree)
        if ours is None:  # it refers to the moved option
            tree = merge(tree, _moved_leaf(path, leaf, written))
        elif theirs is not None and not same_values(theirs, ours):
            raise ConfigError(
                f"{leaf.source}: found {written}={shown(leaf)} (AReaL's name for {path}) and "
                f"{path}={shown(there)} ({there.source}); allowed is one value; remove one of the two"
            )
    return tree


def _moved_leaf(path: str, leaf: RawNode, written: str) -> RawMapping:
    """The tree of one moved option. An override shows the old name already, and so does an option moved before."""
    named = leaf
    if not is_override(leaf) and not leaf.source.endswith(")"):
        named = replace(leaf, source=f"{leaf.source} ({written})")
    section, _, key = path.rpartition(".")
    return nested(section, RawMapping(MappingProxyType({key: named}), leaf.source))


def _value(node: RawNode, path: str, tree: RawMapping) -> RawNode | None:
    """The value of ``node`` with references resolved as far as ``tree`` has them; ``None`` if it refers to ``path``."""
    for _ in range(MAX_REFERENCES):
        reference = REFERENCE.fullmatch(node.text.strip()) if isinstance(node, RawScalar) else None
        if reference is None:
            break
        if reference["name"] == path:
            return None
        target = tree.get(reference["name"])
        if target is None:
            break
        node = target
    return node


def _leaves(path: str, node: RawNode) -> Iterator[tuple[str, RawNode]]:
    if not isinstance(node, RawMapping):
        yield path, node
        return
    for below, child in walk(node, path):
        if not isinstance(child, RawMapping):
            yield below, child
