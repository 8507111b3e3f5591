"""Reads and replaces single options of raw trees, for the translations."""

from __future__ import annotations

from archon_core.config.raw import RawMapping, RawNode, RawScalar, follow, merge


def text_of(tree: RawMapping, option: str) -> str:
    """The text of an option, with references resolved; empty if it is not set."""
    _, node = follow(tree, option)
    return node.text if isinstance(node, RawScalar) and not node.is_null else ""


def with_text(tree: RawMapping, option: str, text: str, source: str = "AReaL's form") -> RawMapping:
    """``tree`` with another text of an option. Sections that exist keep their source."""
    keys = option.split(".")
    over: RawNode = RawScalar(text, plain=True, source=source)
    for depth in reversed(range(len(keys))):
        exists = depth == 0 or isinstance(tree.get(".".join(keys[:depth])), RawMapping)
        over = RawMapping({keys[depth]: over}, "" if exists else source)
    assert isinstance(over, RawMapping)
    return merge(tree, over)


def is_override(node: RawNode) -> bool:
    """Whether an override of the command line sets the node."""
    return node.source.startswith("override ")
