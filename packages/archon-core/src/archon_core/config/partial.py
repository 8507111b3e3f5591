"""Reads a few options of a run's YAML file and ignores the others.

A process beside the trainer, such as an inference server, needs to know where its run is, but not the packages whose
options the file has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archon_core.config.loading import checked_config
from archon_core.config.overrides import parse_overrides
from archon_core.config.raw import RawMapping, merge, prune, walk
from archon_core.config.root import RootSchema
from archon_core.config.sections import build_schema, choose_sections
from archon_core.config.typed import Problem, convert, field_types, knows, section_of
from archon_core.config.unknown_options import inlined
from archon_core.config.yaml_file import read_yaml
from archon_core.contracts.train import DialectSpec
from archon_core.errors import did_you_mean

if TYPE_CHECKING:
    from archon_core.config.dialect import Dialect
    from archon_core.plugins import Registry


def read_part(path: Path | str, overrides: Sequence[str] = (), *, root: RootSchema, registry: Registry) -> Any:
    """The options of ``root`` in a YAML file, in Archon's format or an installed dialect, with overrides applied.

    Args:
        path: the file.
        overrides: ``name.of.option=value``; an option that ``root`` lacks is ignored, unless it looks misspelt.
        root: schema of the options to read. Sections of plugins are read for its selectors only.
        registry: source of plugins' sections and dialects.

    Raises:
        ConfigError: with all errors of the options that are read.
    """
    dialects: list[Dialect] = [spec.load() for spec in registry.all(DialectSpec)]
    written, changes = read_yaml(Path(path)), parse_overrides(overrides)
    for dialect in dialects:
        written = dialect.compose(written, Path(path).parent)
    recognised = [dialect for dialect in dialects if dialect.recognises(written)]
    for dialect in dialects:
        keep = frozenset() if dialect in recognised else dialect.own_roots()
        written, changes = dialect.rename(written, keep=keep), dialect.rename(changes, keep=keep)
    tree = merge(written, changes)
    for dialect in dialects:
        tree = dialect.translate(tree, recognised=dialect in recognised).tree
    choice = choose_sections(registry, tree, root)
    schema = build_schema(root.schema, [section for section in choice.used if section.spec.kind in root.selectors])
    ignored = {name for name, _ in walk(tree) if not knows(schema, name)}
    known = inlined(prune(tree, lambda name, _: name in ignored), tree, ignored)
    return checked_config(schema, convert(known, schema), [*_misspelt(changes, schema)])


def _misspelt(changes: RawMapping, schema: type) -> Iterator[Problem]:
    """Overrides whose name is close to one that is read."""
    for name, node in walk(changes):
        section, _, key = name.rpartition(".")
        if knows(schema, name) or (section and not knows(schema, section)):
            continue
        kind: type | None = schema
        for part in filter(None, section.split(".")):
            kind = section_of(field_types(kind).get(part)) if kind is not None else None
        hint = did_you_mean(key, list(field_types(kind))) if kind is not None else ""
        if hint:
            yield Problem(node.source, f"unknown option {name}{hint}")
