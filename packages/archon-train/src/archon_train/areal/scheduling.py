"""Translates AReaL's lists of ``scheduling_spec``: one entry per kind of worker there, one section per engine here."""

from __future__ import annotations

from archon_core.config.raw import RawList, RawMapping, RawScalar, follow, merge, nested
from archon_core.config.typed import Problem
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine_config import ROLES
from archon_core.errors import ConfigError

SECTIONS = (*ROLES, "rollout", "teacher.rollout")

DROPPED = {
    "cmd": "Archon starts its own processes",
    "gpu": "the layout gives each process its devices",
    "port_count": "processes choose free ports",
    "ray_placement_strategy": "tensor-parallel ranks share a machine, and servers spread",
    "task_type": "the layout says which processes there are",
}
"""AReaL's options of a specification that Archon does not have -> why."""


def translate_scheduling(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    """``tree`` with every ``scheduling_spec`` as a section, without the options that Archon does not have.

    Raises:
        ConfigError: an engine has several specifications.
    """
    reasons = "; ".join(dict.fromkeys(DROPPED.values()))
    for role in SECTIONS:
        option = f"{role}.scheduling_spec"
        if tree.get(option) is None:
            continue
        origin, node = follow(tree, option)
        if isinstance(node, RawScalar | None):
            continue  # null, or a reference to nothing, which is reported later
        items = node.items if isinstance(node, RawList) else (node,)
        if not items:
            tree = merge(tree, nested(option, RawScalar("null", source=node.source)))
            continue
        if len(items) != 1 or not isinstance(items[0], RawMapping):
            text = (
                f"{option}: found {len(items)} specifications; allowed is one, because all processes of an engine get "
                "the same; keep the first"
            )
            raise ConfigError(str(Problem(node.source, text)))
        entries = {name: child for name, child in items[0].entries.items() if name not in DROPPED}
        dropped = [name for name in items[0].entries if name in DROPPED]
        if dropped and origin == option:
            decisions.append(Decision(option, ", ".join(dropped), "no effect", reasons))
        tree = _with_section(tree, option, RawMapping(entries, node.source))
    return tree


def _with_section(tree: RawMapping, option: str, section: RawMapping) -> RawMapping:
    null = RawScalar("null", source=section.source)  # a list cannot be merged with a section
    return merge(merge(tree, nested(option, null)), nested(option, section))
