"""Judges AReaL's options that Archon accepts without effect: harmless, a decision, or an error."""

from __future__ import annotations

from archon_core.config.dialect import Verdict
from archon_core.config.raw import RawMapping, RawNode, RawScalar, follow, shown
from archon_core.config.typed import Problem
from archon_core.contracts.decisions import Decision
from archon_train.areal.keys import (
    IGNORED,
    RENAMED,
    SECTIONS,
    Ignored,
    fits,
)


def judge(path: str, node: RawNode, tree: RawMapping) -> Verdict:
    """Look up an option in the table ``IGNORED``."""
    if path in SECTIONS and isinstance(node, RawScalar) and node.is_null:
        return Verdict(known=True)
    for rule in IGNORED:
        if not fits(rule.path, path):
            continue
        if _is_harmless(path, node, rule, tree):
            return Verdict(known=True)
        if rule.otherwise == "error":
            text = f"{path}: found {shown(node)}; allowed is {' or '.join(rule.harmless)}: {rule.reason}"
            return Verdict(known=True, problem=Problem(node.source, text))
        return Verdict(known=True, decision=Decision(path, shown(node), "no effect", rule.reason))
    return Verdict(known=False)


def names_below(section: str) -> list[str]:
    """AReaL's options in a section; empty if it has no such section."""
    length = len(section.split("."))
    patterns = [pattern.split(".") for pattern in (*RENAMED, *(rule.path for rule in IGNORED))]
    return [p[length] for p in patterns if len(p) > length and fits(".".join(p[:length]), section)]


def _is_harmless(path: str, node: RawNode, rule: Ignored, tree: RawMapping) -> bool:
    if isinstance(node, RawScalar) and rule.same_as:
        (option, same), (_, repeated) = follow(tree, path), follow(tree, rule.same_as)
        if option == rule.same_as or (same is not None and same == repeated):
            return True
    for value in rule.harmless:
        name, equals, inner = value.partition("=")
        if equals:
            child = node.get(name) if isinstance(node, RawMapping) else None
            if isinstance(child, RawScalar) and _is_text(child, inner):
                return True
        elif isinstance(node, RawScalar) and _is_text(node, value):
            return True
    return False


def _is_text(node: RawScalar, text: str) -> bool:
    return node.is_null if text == "null" else node.text.lower() == text
