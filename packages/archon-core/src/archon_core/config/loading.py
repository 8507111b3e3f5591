"""Reads a YAML file and overrides into typed options, and reports all errors in one message.

Steps: parse to texts (``raw``, ``overrides``), translate dialects (``dialect``), select the plugins' sections
(``sections``), convert types (``typed``), merge with the schema and resolve ``${...}`` (OmegaConf), and check values
(``validation``).
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import yaml

from archon_core.config.dialect import Dialect
from archon_core.config.overrides import parse_overrides
from archon_core.config.raw import RawMapping, RawScalar, merge
from archon_core.config.root import RootSchema
from archon_core.config.sections import SectionChoice, build_schema, choose_sections
from archon_core.config.typed import Converted, Problem, convert, field_types, knows, section_of, untyped
from archon_core.config.unknown_options import MissingOption, sort_unknown_options
from archon_core.config.validation import check_options
from archon_core.config.yaml_file import read_yaml
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine import TrainEngineSpec
from archon_core.contracts.train import DialectSpec
from archon_core.errors import ArchonError, ConfigError, did_you_mean

if TYPE_CHECKING:
    from archon_core.plugins import Registry

MAX_NAMES = 5
"""Names that an error about a file lists."""


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration that was read and checked.

    Attributes:
        config: the root schema's dataclass, with the sections of the plugins that it uses.
        decisions: options that were changed or have no effect.
        explicit: dotted names, in Archon's spelling, of the options that the file or an override sets.
        sources: dotted name -> file and line, or override, of those options.
        missing: options of packages that are not installed; empty unless ``allow_missing``.
        warnings: problems of plugins' sections, as sentences.
        dialects: names of the dialects whose format the file has; empty for Archon's own format.
    """

    config: Any
    decisions: tuple[Decision, ...]
    explicit: frozenset[str]
    sources: dict[str, str]
    missing: tuple[MissingOption, ...] = ()
    warnings: tuple[str, ...] = ()
    dialects: tuple[str, ...] = ()

    def to_yaml(self) -> str:
        """The whole configuration, including defaults, as YAML that loads to an equal one."""
        return to_yaml(self.config)


def read_config(
    path: Path | str,
    overrides: Sequence[str] = (),
    *,
    root: RootSchema,
    registry: Registry | None = None,
    allow_missing: bool = False,
) -> LoadedConfig:
    """Read a YAML file, in Archon's format or an installed dialect, and apply dotted overrides.

    Args:
        path: the file.
        overrides: ``name.of.option=value``; the last one wins.
        root: the root schema.
        registry: source of plugins' sections and dialects; ``None`` for the registry of this process.
        allow_missing: collect options of packages that are not installed in ``missing`` instead of raising.

    Raises:
        ConfigError: with all errors of the file and the overrides: syntax, unknown options, wrong types, dangling
            references, invalid values, and options of packages that are not installed.
    """
    if registry is None:
        from archon_core.plugins import registry as installed

        registry = installed()
    written = read_yaml(Path(path))
    for spec in registry.all(DialectSpec):
        written = spec.load().compose(written, Path(path).parent)
    return read_tree(written, parse_overrides(overrides), registry, root=root, allow_missing=allow_missing)


def read_tree(
    written: RawMapping, overrides: RawMapping, registry: Registry, *, root: RootSchema, allow_missing: bool = False
) -> LoadedConfig:
    """``read_config`` for parsed trees."""
    root = root.with_engines(registry.all(TrainEngineSpec))
    named: dict[str, Dialect] = {spec.name: spec.load() for spec in registry.all(DialectSpec)}
    dialects = [*named.values()]
    recognised = [dialect for dialect in dialects if dialect.recognises(written)]
    taken = _plugins_own_roots(registry, root)
    tree, decisions, problems = (written, overrides), [], []
    for dialect in dialects:
        keep = taken | (frozenset() if dialect in recognised else dialect.own_roots())
        tree = tuple(dialect.rename(part, keep=keep) for part in tree)
    merged = merge(*tree)
    for dialect in dialects:
        translation = dialect.translate(merged, recognised=dialect in recognised)
        merged, decisions = translation.tree, [*decisions, *translation.decisions]
        problems += translation.problems
    choice = choose_sections(registry, merged, root)
    schema = build_schema(root.schema, choice.used)
    for dialect in recognised:
        filled = dialect.fill_in(merged, schema)
        merged, decisions = filled.tree, [*decisions, *filled.decisions]
        problems += filled.problems
    unknown = sort_unknown_options(
        merged, schema, choice, registry, root=root, dialects=dialects, recognised=recognised
    )
    if not choice.failures:
        _refuse_other_files(merged, unknown.tree, schema)
    converted = convert(unknown.tree, schema)
    problems += unknown.problems
    if not allow_missing:
        problems += [Problem(option.source, str(option)) for option in unknown.missing]
    config = checked_config(schema, converted, problems, choice)
    return LoadedConfig(
        config=config,
        decisions=(*decisions, *unknown.decisions),
        explicit=frozenset(converted.written),
        sources=converted.written,
        missing=unknown.missing,
        warnings=choice.failures,
        dialects=tuple(name for name, dialect in named.items() if dialect in recognised),
    )


def checked_config(
    schema: type, converted: Converted, problems: Sequence[Problem] = (), choice: SectionChoice | None = None
) -> Any:
    """The schema's defaults with the given values.

    Args:
        schema: a dataclass.
        converted: values in its types.
        problems: errors to report beside those of ``converted``.
        choice: the plugins' sections, whose failures the message repeats.

    Raises:
        ConfigError: with all errors: the given ones, wrong types, dangling references, invalid values.
    """
    _raise_all([*problems, *converted.problems], choice)
    config = _merge(schema, converted)
    _raise_all([Problem(_source(option, converted), text) for option, text in check_options(config)], choice)
    return config


def _refuse_other_files(merged: RawMapping, unknown: RawMapping, schema: type) -> None:
    """Raise for a file of another kind: none of its names is known or resembles a known one."""
    names = list(merged.entries)
    known = list(field_types(schema))
    if not names or any(name in known or name not in unknown.entries or did_you_mean(name, known) for name in names):
        return
    found = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
    which = "which is not an option of a run" if len(names) == 1 else "which are not options of a run"
    raise ConfigError(
        f"{merged.source or 'the configuration'}: found only {found}, {which}; allowed are "
        f"{', '.join(sorted(known))}; give the YAML file of a run"
    )


def _plugins_own_roots(registry: Registry, root: RootSchema) -> frozenset[str]:
    sections = (section for plugin in registry.plugins for spec in plugin.specs for section in spec.config)
    roots = {section.path.partition(".")[0] for section in sections}
    return frozenset(name for name in roots if not knows(root.schema, name))


def to_yaml(config: Any) -> str:
    """A configuration, including defaults, as YAML that loads to an equal one."""
    tree = _escaped(dataclasses.asdict(config))
    return yaml.dump(tree, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML would read as another type."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_text = untyped(RawScalar(text)) == text and text != "None"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_text else "'")


_Dumper.add_representer(str, _represent_text)
_Dumper.add_multi_representer(enum.Enum, lambda dumper, choice: _represent_text(dumper, choice.name))
_Dumper.add_multi_representer(PurePath, lambda dumper, path: _represent_text(dumper, str(path)))


def _merge(schema: type, converted: Converted) -> Any:
    """The schema's defaults with the given values, and references resolved."""
    if not _needs_resolving(converted.values):
        return _filled(schema(), converted.values)
    return _resolved(schema, converted)


def _needs_resolving(value: Any) -> bool:
    """Whether OmegaConf is needed: a text contains or escapes a reference, or is ``???``."""
    if isinstance(value, dict):
        return any(map(_needs_resolving, value.values()))
    if isinstance(value, list):
        return any(map(_needs_resolving, value))
    return isinstance(value, str) and ("${" in value or value == "???")


def _filled(section: Any, values: dict[str, Any]) -> Any:
    """A copy of a section with the given values. Equivalent to OmegaConf's merge, but tens of times faster."""
    hints, changes = field_types(type(section)), {}
    for name, value in values.items():
        kind = section_of(hints[name])
        if kind is not None and isinstance(value, dict):
            default = getattr(section, name)
            value = _filled(kind() if default is None else default, value)
        changes[name] = value
    return dataclasses.replace(section, **changes)


def _resolved(schema: type, converted: Converted) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), converted.values)
    except OmegaConfBaseException as error:
        option = getattr(error, "full_key", None) or "the configuration"
        raise ConfigError(str(Problem(_source(option, converted), f"{option}: {_explain(error)}"))) from error
    problems = []
    for option, source in converted.written.items():
        try:
            OmegaConf.select(merged, option, throw_on_missing=True)
        except OmegaConfBaseException as error:
            problems.append(Problem(source, f"{option}: {_explain(error)}"))
    _raise_all(problems)
    try:
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        option = getattr(error, "full_key", None) or "the configuration"
        raise ConfigError(f"{option}: {_explain(error)}") from error


_REFERENCES = "${name.of.option} and ${oc.env:NAME}, of the option's type"


def _explain(error: Exception) -> str:
    """OmegaConf's message as found / allowed / fix."""
    message = str(error).partition("\n")[0]
    if match := re.fullmatch(r"Interpolation key '(.*)' not found", message):
        return f"found ${{{match[1]}}}, but there is no option {match[1]}; write that option, or the value itself"
    if "Recursive interpolation" in message:
        return "found a reference that leads back to itself; write the value itself"
    if match := re.search(r"Environment variable '(\w+)' not found", message):
        return f"found ${{oc.env:{match[1]}}}, but the environment has no {match[1]}; set it, or write the value itself"
    if match := re.match(
        r"(?:While dereferencing interpolation '(.*?)': )?Unsupported interpolation type (\w+)", message
    ):
        return (
            f"found the resolver {match[2]!r} in a reference; allowed are {_REFERENCES}; write one, or the value itself"
        )
    if match := re.match(r"While dereferencing interpolation '(.*?)': ", message):
        return (
            f"found {match[1]}, whose value does not fit the option; allowed are {_REFERENCES}; write the value itself"
        )
    if type(error).__name__ == "GrammarParseError":
        return (
            f"found a reference that cannot be read ({message}); write ${{name.of.option}}, or \\${{ for a plain text"
        )
    return message


def _raise_all(problems: Iterable[Problem], choice: SectionChoice | None = None) -> None:
    lines = list(dict.fromkeys(str(problem) for problem in problems))
    if not lines:
        return
    if choice is not None and choice.failures:
        lines += [f"(not read: {failure})" for failure in choice.failures]
    if len(lines) == 1:
        raise ConfigError(lines[0])
    raise SeveralProblemsError(*lines)


class SeveralProblemsError(ConfigError):
    """A configuration with more than one problem; ``args`` are found / allowed / fix sentences."""

    def __str__(self) -> str:
        return f"{len(self.args)} problems:\n" + "\n".join(f"- {problem}" for problem in self.args)


def explain_problems(error: ArchonError) -> tuple[str, ...]:
    """The problems that an error about a configuration reports."""
    return error.args if isinstance(error, SeveralProblemsError) else (str(error),)


def _source(option: str, converted: Converted) -> str:
    """The source of an option, or of the nearest section around it.

    An override of one option in a section is no source of the others: only one of the whole section is.
    """
    section = option
    while section and section not in converted.written:
        section = section.rpartition(".")[0]
    source = converted.written.get(section, "")
    is_innocent = section != option and source.startswith("override ") and f"{section}=" not in source
    return "" if is_innocent else source


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_escaped(child) for child in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
