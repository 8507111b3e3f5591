"""Dialects: files written for another program, translated into Archon's options.

A dialect translates trees of texts into trees of texts, before any type is known. Each method has a neutral default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from archon_core.config.raw import RawMapping, RawNode
from archon_core.config.typed import Problem
from archon_core.contracts.decisions import Decision


@dataclass(frozen=True)
class Translation:
    """A tree in Archon's option names.

    Attributes:
        tree: the translated tree.
        decisions: what was decided on the way.
        problems: errors of the file, which are reported with all others.
    """

    tree: RawMapping
    decisions: tuple[Decision, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The verdict on an option that the schema does not have.

    Attributes:
        known: whether the dialect has the option.
        decision: set if the option is accepted without effect.
        problem: set if the option is not supported and would change results.
        feature: the missing feature that it needs. Options that need the same one share the problem of the first.
    """

    known: bool = False
    decision: Decision | None = None
    problem: Problem | None = None
    feature: str = ""


class Dialect:
    """Reads files of another program."""

    def recognises(self, tree: RawMapping) -> bool:
        """Whether a file is in this dialect."""
        return False

    def compose(self, tree: RawMapping, folder: Path) -> RawMapping:
        """Add the content of other files that a file of this dialect names.

        Args:
            tree: the file as written.
            folder: its folder.
        """
        return tree

    def rename(self, tree: RawMapping, *, keep: frozenset[str]) -> RawMapping:
        """Replace the dialect's option names with Archon's, in every file and override.

        Args:
            tree: the raw tree.
            keep: top-level names to leave alone, because they mean something else in Archon.
        """
        return tree

    def own_roots(self) -> frozenset[str]:
        """Top-level names that are renamed only in files of this dialect."""
        return frozenset()

    def translate(self, tree: RawMapping, *, recognised: bool) -> Translation:
        """Translate values with another meaning in the dialect. ``tree`` has Archon's names and all overrides."""
        return Translation(tree)

    def fill_in(self, tree: RawMapping, schema: type) -> Translation:
        """Add the other program's implicit settings, if ``schema`` has options for them."""
        return Translation(tree)

    def judge(self, path: str, node: RawNode, tree: RawMapping, *, recognised: bool) -> Verdict:
        """Look up an option that the schema does not have.

        Args:
            path: its dotted name.
            node: its value.
            tree: the whole tree, in Archon's option names.
            recognised: whether the file is in this dialect.
        """
        return Verdict()

    def names_below(self, section: str) -> Sequence[str]:
        """The dialect's options in a section, or at the top for an empty name; empty if it has no such section."""
        return ()
