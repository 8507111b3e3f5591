"""Reads and replaces single options of raw trees, for the translations."""

from __future__ import annotations

from archon_core.config.raw import RawMapping, RawScalar, follow, merge, nested


def text_of(tree: RawMapping, option: str) -> str:
    """The text of an option, with references resolved; empty if it is not set."""
    _, node = follow(tree, option)
    return node.text if isinstance(node, RawScalar) and not node.is_null else ""


def with_text(tree: RawMapping, option: str, text: str, source: str = "AReaL's form") -> RawMapping:
    """``tree`` with another text of an option."""
    return merge(tree, nested(option, RawScalar(text, plain=True, source=source)))
