"""Finds misspelt names in the sections of inference servers."""

from __future__ import annotations

from archon_core.config.raw import RawMapping, prune
from archon_core.config.typed import Problem, knows
from archon_core.errors import did_you_mean
from archon_train.areal.facts import names_in, unknown_below

SERVERS = ("sglang", "vllm")
"""Sections with the options of servers."""


def take_unknown_server_options(tree: RawMapping, schema: type) -> tuple[RawMapping, tuple[Problem, ...]]:
    """``tree`` without the options of servers that neither AReaL nor an installed driver has, and an error for each.

    Without this check, a section of a server that is not installed or not used would hide misspelt names.
    """
    problems = {}
    for section in SERVERS:
        node = tree.get(section)
        for option, child in unknown_below(section, node) if node is not None else ():
            if not knows(schema, option):
                hint = did_you_mean(option.partition(".")[2], names_in(section))
                problems[option] = Problem(child.source, f"unknown option {option}{hint}")
    return prune(tree, lambda path, _: path in problems), tuple(problems.values())
