"""Options that the schema does not have: whose they are, and what becomes of them.

An option may belong to a plugin that is installed and not used, to a package that is not installed, or to AReaL.
What nobody knows stays in the tree, and conversion reports it with the nearest name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING

from archon_core.config.areal import judge, names_below
from archon_core.config.decisions import Decision
from archon_core.config.packages import MissingPackage, missing_package
from archon_core.config.raw import REFERENCE, RawList, RawMapping, RawNode, RawScalar, prune, shown
from archon_core.config.sections import SELECTORS, SectionChoice, named
from archon_core.config.typed import Problem, knows
from archon_core.errors import did_you_mean

if TYPE_CHECKING:
    from archon_core.plugins import Registry


@dataclass(frozen=True)
class MissingOption:
    """An option of a package that is not there.

    Attributes:
        option: dotted name.
        package: what has it.
        source: where it is written.
    """

    option: str
    package: MissingPackage
    source: str

    def __str__(self) -> str:
        return f"{self.option}: {self.package}"


@dataclass(frozen=True)
class Leftovers:
    """What was found beside the schema.

    Attributes:
        tree: the rest: what the schema has, and what nobody knows.
        decisions: options without effect.
        missing: options of packages that are not there.
        problems: AReaL's options with values that Archon cannot honour.
    """

    tree: RawMapping
    decisions: tuple[Decision, ...] = ()
    missing: tuple[MissingOption, ...] = ()
    problems: tuple[Problem, ...] = ()


def sort_leftovers(tree: RawMapping, schema: type, choice: SectionChoice, registry: Registry) -> Leftovers:
    """Take the options that the schema does not have out of ``tree``, where somebody else knows them."""
    from archon_core.plugins.hints import package_for_option

    decisions: list[Decision] = []
    missing: list[MissingOption] = []
    problems: list[Problem] = []
    removed: set[str] = set()

    def sort(path: str, node: RawNode, *, inside_areal: bool = False) -> None:
        unused, package, verdict = _why_unused(path, choice, tree), package_for_option(path), judge(path, node, tree)
        if unused:
            decisions.append(Decision(path, shown(node), "no effect", unused))
        elif package is not None:
            missing.append(MissingOption(path, missing_package(package, registry), node.source))
        elif verdict.known:
            decisions.extend(filter(None, [verdict.decision]))
            problems.extend(filter(None, [verdict.problem]))
        elif isinstance(node, RawMapping) and names_below(path):
            for key, child in node.entries.items():
                sort(f"{path}.{key}", child, inside_areal=True)
        elif inside_areal:
            section, _, key = path.rpartition(".")
            hint = did_you_mean(key, names_below(section))
            problems.append(Problem(node.source, f"unknown option {path}{hint}"))
        else:
            return
        removed.add(path)

    for path, node in _unknown(tree, schema):
        sort(path, node)
    kept = _inlined(prune(tree, lambda path, _: path in removed), tree, removed)
    return Leftovers(kept, tuple(_grouped(decisions)), tuple(_grouped_missing(missing)), tuple(problems))


def _unknown(tree: RawMapping, schema: type, path: str = "") -> Iterator[tuple[str, RawNode]]:
    """The topmost nodes that the schema does not have."""
    for key, node in tree.entries.items():
        below = f"{path}.{key}" if path else key
        if not knows(schema, below):
            yield below, node
        elif isinstance(node, RawMapping):
            yield from _unknown(node, schema, below)


def _why_unused(path: str, choice: SectionChoice, tree: RawMapping) -> str:
    """Why an option of something that could be used has no effect; empty when it is no such option."""
    from archon_core.plugins.hints import PACKAGES

    for section in choice.unused:
        if path == section.path or any(path == o or path.startswith(f"{o}.") for o in section.options):
            return _unnamed(section.spec.kind, section.spec.name)
    engine = path.partition(".")[0]
    engines = named("inference_engine", tree)
    if engines is not None and engine not in engines and engine in chain(*PACKAGES["inference_engine"].values()):
        return _unnamed("inference_engine", engine)  # AReaL's files have a section for each engine, used or not
    return ""


def _unnamed(kind: str, name: str) -> str:
    option = SELECTORS[kind][0] if kind in SELECTORS else kind
    return f"an option of {kind.replace('_', ' ')} {name!r}, which {option} does not name"


def _inlined(tree: RawMapping, whole: RawMapping, removed: set[str]) -> RawMapping:
    """``tree`` with references to options that were taken out replaced by their texts."""

    def text(match: re.Match[str]) -> str:
        name = match["name"]
        target = whole.get(name)
        gone = any(name == path or name.startswith(f"{path}.") for path in removed)
        return target.text if gone and isinstance(target, RawScalar) else match[0]

    def inline(node: RawNode) -> RawNode:
        if isinstance(node, RawMapping):
            return RawMapping(
                MappingProxyType({key: inline(child) for key, child in node.entries.items()}), node.source
            )
        if isinstance(node, RawList):
            return RawList(tuple(inline(item) for item in node.items), node.source)
        if not node.is_interpolated:
            return node
        return RawScalar(REFERENCE.sub(text, node.text), node.plain, node.source)

    result = inline(tree)
    assert isinstance(result, RawMapping)
    return result


def _grouped(decisions: list[Decision]) -> Iterator[Decision]:
    """Options that have the same reason in one row, so that a long file has a short table."""
    groups: dict[tuple[str, str], list[Decision]] = {}
    for decision in decisions:
        groups.setdefault((decision.reason, decision.effective), []).append(decision)
    for (reason, effective), rows in groups.items():
        values = dict.fromkeys(row.requested for row in rows)
        yield Decision(", ".join(row.option for row in rows), ", ".join(values), effective, reason)


def _grouped_missing(missing: list[MissingOption]) -> list[MissingOption]:
    return sorted(missing, key=lambda option: (option.package.name, option.option))
