"""Classifies options that the schema does not have.

An option may belong to an installed plugin that is not used, to a package that is not installed, or to another program
with an installed dialect. Other unknown options stay in the tree, and the conversion reports them with the nearest
name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from archon_core.config.dialect import Dialect, Verdict
from archon_core.config.packages import MissingPackage, missing_package
from archon_core.config.raw import MAX_REFERENCES, REFERENCE, RawList, RawMapping, RawNode, RawScalar, prune, shown
from archon_core.config.root import RootSchema
from archon_core.config.sections import PluginSection, SectionChoice
from archon_core.config.typed import Problem, field_types, knows, section_of
from archon_core.contracts.decisions import Decision
from archon_core.errors import did_you_mean
from archon_core.layout import BUILTIN_BACKENDS
from archon_core.layout.diagnostics import listed

if TYPE_CHECKING:
    from archon_core.plugins import Registry


@dataclass(frozen=True)
class MissingOption:
    """An option of a package that is not installed.

    Attributes:
        option: dotted name.
        package: the package that has it.
        source: source location.
    """

    option: str
    package: MissingPackage
    source: str

    def __str__(self) -> str:
        return f"{self.option}: {self.package}"


@dataclass(frozen=True)
class UnknownOptions:
    """The classified options.

    Attributes:
        tree: the remaining tree: options of the schema, and options that are unknown everywhere.
        decisions: options without effect.
        missing: options of packages that are not installed.
        problems: options of a dialect with unsupported values.
    """

    tree: RawMapping
    decisions: tuple[Decision, ...] = ()
    missing: tuple[MissingOption, ...] = ()
    problems: tuple[Problem, ...] = ()


def sort_unknown_options(
    tree: RawMapping,
    schema: type,
    choice: SectionChoice,
    registry: Registry,
    *,
    root: RootSchema,
    dialects: Sequence[Dialect] = (),
    recognised: Sequence[Dialect] = (),
) -> UnknownOptions:
    """Take out of ``tree`` the options that the schema lacks but a plugin, a package or a dialect has."""
    from archon_core.plugins.hints import package_for_option

    decisions: list[Decision] = []
    missing: list[MissingOption] = []
    problems: list[tuple[str, str, Problem]] = []
    removed: set[str] = set()

    def names_below(section: str) -> list[str]:
        return [name for dialect in dialects for name in dialect.names_below(section)]

    def sort(path: str, node: RawNode, *, inside_dialect: bool = False) -> None:
        verdicts = (dialect.judge(path, node, tree, recognised=dialect in recognised) for dialect in dialects)
        verdict = next((verdict for verdict in verdicts if verdict.known), Verdict())
        unused = _why_unused(path, choice, tree, root)
        package = package_for_option(path, known=lambda option: knows(schema, option))
        if unused:
            decisions.append(Decision(path, shown(node), "no effect", unused))
        elif package is not None:
            missing.append(MissingOption(path, missing_package(package, registry), node.source))
        elif verdict.known:
            decisions.extend(filter(None, [verdict.decision]))
            if verdict.problem is not None:
                problems.append((path, verdict.feature, verdict.problem))
        elif isinstance(node, RawMapping) and names_below(path):
            for key, child in node.entries.items():
                sort(f"{path}.{key}", child, inside_dialect=True)
        elif inside_dialect:
            section, _, key = path.rpartition(".")
            hint = did_you_mean(key, names_below(section))
            problems.append((path, "", Problem(node.source, f"unknown option {path}{hint}")))
        elif hint := _hint_of_dialects(path, schema, recognised):
            problems.append((path, "", Problem(node.source, f"unknown option {path}{hint}")))
        else:
            return
        removed.add(path)

    for path, node in _unknown(tree, schema):
        sort(path, node)
    kept = inlined(prune(tree, lambda path, _: path in removed), tree, removed)
    return UnknownOptions(kept, tuple(_grouped(decisions)), tuple(_grouped_missing(missing)), tuple(_shared(problems)))


def _unknown(tree: RawMapping, schema: type, path: str = "") -> Iterator[tuple[str, RawNode]]:
    """The topmost nodes that the schema does not have."""
    for key, node in tree.entries.items():
        below = f"{path}.{key}" if path else key
        if not knows(schema, below):
            yield below, node
        elif isinstance(node, RawMapping):
            yield from _unknown(node, schema, below)


def _hint_of_dialects(path: str, schema: type, recognised: Sequence[Dialect]) -> str:
    """The nearest name of an unknown option, if it is one of a dialect and not of the schema."""
    section, _, key = path.rpartition(".")
    kind: type | None = schema
    for name in filter(None, section.split(".")):
        kind = section_of(field_types(kind).get(name)) if kind is not None else None
    own = list(field_types(kind)) if kind is not None else []
    theirs = [name for dialect in recognised for name in dialect.names_below(section)]
    hint = did_you_mean(key, [*own, *theirs])
    return "" if hint == did_you_mean(key, own) else hint


def _why_unused(path: str, choice: SectionChoice, tree: RawMapping, root: RootSchema) -> str:
    """Why an option of an installed but unused plugin has no effect; empty for other options."""
    owners = [section.spec for section in choice.unused if _has(section, path)]
    if owners:
        kind = owners[0].kind
        return _only([spec.name for spec in owners if spec.kind == kind], kind, path, tree, root)
    engine = path.partition(".")[0]
    engines = root.named("inference_engine", tree)
    if engines is not None and engine not in engines and _is_inference(engine):
        # A file may have a section for each engine, used or not.
        return _only([engine], "inference_engine", path, tree, root)
    return ""


def _is_inference(engine: str) -> bool:
    return engine in BUILTIN_BACKENDS and BUILTIN_BACKENDS[engine].kind == "inference"


def _has(section: PluginSection, path: str) -> bool:
    inside = path.removeprefix(f"{section.path}.")
    return path == section.path or (inside != path and knows(section.schema, inside))


def _only(names: Sequence[str], kind: str, path: str, tree: RawMapping, root: RootSchema) -> str:
    """The reason why an option of the specs ``names`` has no effect: the configuration names another one."""
    options, section = root.selectors[kind], path.partition(".")[0]
    option = next((option for option in options if option.partition(".")[0] == section), options[0])
    label, names = kind.replace("_", " "), [*dict.fromkeys(names)]
    who, have = (f"{label} {names[0]}", "has") if len(names) == 1 else (f"{label}s {listed(names)}", "have")
    return f"only {who} {have} this option; {option} is {root.text_at(tree, option) or 'null'}"


def inlined(tree: RawMapping, whole: RawMapping, removed: Collection[str]) -> RawMapping:
    """``tree`` with references to removed options replaced by the options' texts."""

    def is_removed(name: str) -> bool:
        return any(name == path or name.startswith(f"{path}.") for path in removed)

    def text(match: re.Match[str]) -> str:
        name = match["name"]
        for _ in range(MAX_REFERENCES):  # references may lead back to themselves
            target = whole.get(name)
            if not is_removed(name) or not isinstance(target, RawScalar):
                break
            further = REFERENCE.fullmatch(target.text)
            if further is None:
                return target.text
            name = further["name"]
        return match[0] if name == match["name"] else f"${{{name}}}"

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
    """One decision per reason, to keep the table short."""
    groups: dict[tuple[str, str], list[Decision]] = {}
    for decision in decisions:
        groups.setdefault((decision.reason, decision.effective), []).append(decision)
    for (reason, effective), rows in groups.items():
        values = dict.fromkeys(row.requested for row in rows)
        yield Decision(", ".join(row.option for row in rows), ", ".join(values), effective, reason)


def _shared(problems: list[tuple[str, str, Problem]]) -> Iterator[Problem]:
    """The problems of options by feature: the first one's, with the names of the others."""
    groups: dict[str, list[tuple[str, Problem]]] = {}
    for option, feature, problem in problems:
        groups.setdefault(feature or str(problem), []).append((option, problem))
    for (_, problem), *others in groups.values():
        names = ", ".join(option for option, _ in others)
        yield Problem(problem.source, f"{problem.text} (the same holds for {names})") if others else problem


def _grouped_missing(missing: list[MissingOption]) -> list[MissingOption]:
    return sorted(missing, key=lambda option: (option.package.name, option.option))
