"""AReaL's defaults where Archon's differ: they hold in AReaL's files, each with a decision."""

from __future__ import annotations

from collections.abc import Iterator

from archon_core.config.raw import RawMapping
from archon_core.config.root import default_text
from archon_core.config.typed import knows
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine_config import ROLES
from archon_core.errors import LayoutError
from archon_core.layout import parse_layout
from archon_train.areal.facts import facts
from archon_train.areal.keys import DEFAULTS, KEPT_DEFAULTS, PIPELINE_DEFAULTS
from archon_train.areal.raw_options import text_of, with_text

TRAINED = ("actor", "critic")
"""Models with an optimizer."""

WITHOUT_SAMPLING = ("sft", "rw", "dpo")
"""Algorithms whose files have no ``gconfig`` in AReaL."""


def fill_in_defaults(tree: RawMapping, schema: type, decisions: list[Decision]) -> RawMapping:
    """``tree`` with AReaL's defaults of the options that it leaves out.

    Options of a section that the file sets to null, or to another section by reference, stay as they are. So do models
    that the file does not have.
    """
    for options, default in _differing(tree):
        left_out = [option for option in options if knows(schema, option) and _is_left_out(tree, option)]
        if left_out:
            ours = default_text(schema, left_out[0]) or "null"
            reason = f"AReaL's default; Archon's is {ours}"
            decisions.append(Decision(", ".join(left_out), "left out", default, reason))
        for option in left_out:
            tree = with_text(tree, option, default, "AReaL's default")
    for option, why in KEPT_DEFAULTS.items():
        if knows(schema, option) and _is_left_out(tree, option) and _matters(tree, option):
            theirs, ours = facts(option)[0].shown_default, default_text(schema, option) or "null"
            decisions.append(Decision(option, "left out", ours, f"Archon's default; AReaL's is {theirs}, and {why}"))
    return tree


def _differing(tree: RawMapping) -> Iterator[tuple[list[str], str]]:
    """The options that concern the file, by pattern, and AReaL's default of each pattern."""
    roles = [role for role in ROLES if isinstance(tree.get(role), RawMapping) and _runs_in_engine(tree, role)]
    for pattern, default in (DEFAULTS | PIPELINE_DEFAULTS).items():
        section, _, name = pattern.partition(".")
        if section == "*":
            has_it = (role for role in roles if pattern in DEFAULTS or _is_pipelined(tree, role))
            yield [f"{role}.{name}" for role in has_it if role in TRAINED or "optimizer." not in name], default
        elif section == "eval_gconfig" and not isinstance(tree.get(section), RawMapping):
            continue
        elif section not in ("gconfig", "eval_gconfig") or text_of(tree, "algorithm") not in WITHOUT_SAMPLING:
            yield [pattern], default


def _matters(tree: RawMapping, option: str) -> bool:
    """Whether a file's run reads an option; the key for agents outside of a run only if there may be some."""
    return option != "rollout.agent.admin_api_key" or text_of(tree, "rollout.agent.mode") == "online"


def _runs_in_engine(tree: RawMapping, role: str) -> bool:
    """Whether AReaL runs a model in a training engine: a reward model is Archon's, a teacher may be on servers."""
    return role != "reward_model" and (role != "teacher" or text_of(tree, "teacher.engine_type") == "train")


def _is_left_out(tree: RawMapping, option: str) -> bool:
    """Whether neither the option nor a value in place of its section is written."""
    while option:
        node = tree.get(option)
        if node is not None:
            return isinstance(node, RawMapping)
        option = option.rpartition(".")[0]
    return True


def _is_pipelined(tree: RawMapping, role: str) -> bool:
    try:
        return parse_layout(text_of(tree, f"{role}.backend") or text_of(tree, "actor.backend")).dims["p"] > 1
    except LayoutError:
        return False  # preflight reports the error
