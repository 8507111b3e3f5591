"""Judges AReaL's options that Archon's schema does not have: harmless, a decision, an error, or unknown."""

from __future__ import annotations

import difflib

from archon_core.config.dialect import Verdict
from archon_core.config.raw import RawMapping, RawNode, RawScalar, follow, shown, walk
from archon_core.config.typed import Problem
from archon_core.contracts.decisions import Decision
from archon_core.errors import did_you_mean
from archon_train.areal.facts import (
    Fact,
    facts,
    names_in,
    same_value,
    section_classes,
    takes_anything,
    unknown_below,
)
from archon_train.areal.keys import RENAMED, SECTIONS, fits
from archon_train.areal.raw_options import is_override
from archon_train.areal.rules import IGNORED, SCRIPT_OPTIONS, SCRIPT_REASON, Ignored

TYPO = 0.8
"""Similarity, from 0 to 1, above which a top-level name counts as a misspelt option."""


def judge(path: str, node: RawNode, tree: RawMapping, *, recognised: bool = True) -> Verdict:
    """Look up an option in the tables.

    Args:
        path: its dotted name.
        node: its value.
        tree: the whole tree, to which references refer.
        recognised: whether the file is in AReaL's format, and so may have options of AReaL's example scripts.
    """
    if path in SECTIONS and isinstance(node, RawScalar) and node.is_null:
        return Verdict(known=True)
    found = facts(path)
    rule = rule_for(path)
    if rule is not None:
        return _judge_by(rule, path, node, tree, found)
    if not found:
        if takes_anything(path):
            return Verdict(known=True)
        return _judge_script_option(path, node) if recognised else Verdict()
    _, value = follow(tree, path)
    value = value or node
    if any(fact.is_default(value) for fact in found):
        return Verdict(known=True)
    if isinstance(value, RawScalar) and value.is_null and section_classes(found):
        return Verdict(known=True)
    if isinstance(node, RawMapping) and is_open(path):
        return Verdict()  # its options are judged one by one
    role = path.partition(".")[0]
    if role in ("ref", "teacher") and found[0].owner in ("PPOActorConfig", "DPOEngineConfig"):
        return Verdict(known=True, decision=Decision(path, shown(node), "no effect", f"{role} is not trained"))
    default = "null" if _is_null_by_default(found) else found[0].shown_default
    text = f"{path}: found {shown(node)}; allowed is {default}: this version does not have the option; leave it out"
    return Verdict(known=True, problem=Problem(node.source, text))


def rule_for(path: str) -> Ignored | None:
    """The row of the table for an option, or for the section that has it."""
    # A teacher's servers have the options of the actor's.
    names = (path, path.removeprefix("teacher.")) if path.startswith("teacher.rollout.") else (path,)
    rule = next((rule for rule in IGNORED if any(fits(rule.path, name) for name in names)), None)
    if rule is not None and "*" in rule.path.rpartition(".")[2] and not facts(path):
        return None  # a pattern stands for AReaL's options, not for any name
    return rule


def is_open(section: str) -> bool:
    """Whether AReaL has a section whose options are judged one by one.

    A section that is null by default requests its feature by being written, so it is judged as a whole unless the
    tables name options in it.
    """
    found = facts(section)
    return bool(section_classes(found)) and (not _is_null_by_default(found) or bool(_named_below(section)))


def names_below(section: str) -> list[str]:
    """AReaL's options in a section, or at the top for an empty name; empty if it has no such section."""
    if not section:
        return names_in("")
    named = (name for name in _named_below(section) if "*" not in name)
    return list(dict.fromkeys([*names_in(section), *named]))


def _named_below(section: str) -> list[str]:
    """The names and patterns that the tables have in a section."""
    length = len(section.split("."))
    patterns = [pattern.split(".") for pattern in (*RENAMED, *(rule.path for rule in IGNORED))]
    return [p[length] for p in patterns if len(p) > length and fits(".".join(p[:length]), section)]


def _judge_by(rule: Ignored, path: str, node: RawNode, tree: RawMapping, found: tuple[Fact, ...]) -> Verdict:
    for below, child in unknown_below(path, node):
        section, _, key = below.rpartition(".")
        text = f"unknown option {below}{did_you_mean(key, names_in(section))}"
        return Verdict(known=True, problem=Problem(child.source, text))
    if rule.otherwise == "translated" or _is_harmless(path, node, rule, tree, found):
        return Verdict(known=True)
    if rule.otherwise == "decision":
        return Verdict(known=True, decision=Decision(path, shown(node), "no effect", rule.reason))
    allowed = " or ".join(value or "empty" for value in rule.harmless)
    text = f"{path}: found {shown(node)}; allowed is {allowed}: {rule.reason}"
    return Verdict(known=True, problem=Problem(node.source, text), feature=rule.feature)


def _judge_script_option(path: str, node: RawNode) -> Verdict:
    """The verdict on a top-level name that may be an option of the script that reads the file in AReaL."""
    if "." in path or _is_overridden(node):
        return Verdict()
    if path not in SCRIPT_OPTIONS and difflib.get_close_matches(path, [*SECTIONS, *names_in("")], 1, TYPO):
        return Verdict()
    return Verdict(known=True, decision=Decision(path, shown(node), "no effect", SCRIPT_REASON))


def _is_overridden(node: RawNode) -> bool:
    return any(map(is_override, (node, *(child for _, child in walk(node)))))


def _is_null_by_default(found: tuple[Fact, ...]) -> bool:
    return any(fact.default == "None" for fact in found)


def _is_harmless(path: str, node: RawNode, rule: Ignored, tree: RawMapping, found: tuple[Fact, ...]) -> bool:
    option, value = follow(tree, path)
    value = node if value is None else value
    if isinstance(node, RawScalar) and rule.same_as:
        _, repeated = follow(tree, rule.same_as)
        if option == rule.same_as or value == repeated:
            return True
    if rule.otherwise == "decision" and any(fact.is_default(value) for fact in found):
        return True
    for text in rule.harmless:
        name, equals, inner = text.partition("=")
        if equals:
            child = value.get(name) if isinstance(value, RawMapping) else None
            if isinstance(child, RawScalar) and same_value(child, inner):
                return True
        elif text == "{}":
            if isinstance(value, RawMapping) and not value.entries:
                return True
        elif isinstance(value, RawScalar) and same_value(value, text):
            return True
    return False
