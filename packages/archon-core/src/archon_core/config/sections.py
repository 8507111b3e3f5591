"""Adds plugins' sections to the schema.

A plugin's spec declares sections (``ConfigSection``). Only the sections of specs that a configuration uses become part
of its schema, so that two algorithms may each declare an ``actor.eps_clip``.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from archon_core.config.raw import RawMapping
from archon_core.config.root import RootSchema
from archon_core.config.typed import field_types
from archon_core.contracts.spec import Spec, load_target
from archon_core.errors import ArchonError, ConfigError
from archon_core.plugins.kinds import SPEC_TYPES


class SpecSource(Protocol):
    """The part of the plugin registry that this module needs."""

    def all(self, kind: str) -> Iterable[Spec]: ...


@dataclass(frozen=True)
class PluginSection:
    """One section of a plugin.

    Attributes:
        path: dotted name of the section.
        schema: its dataclass.
        spec: the spec that declares it.
    """

    path: str
    schema: type
    spec: Spec

    @property
    def owner(self) -> str:
        return self.spec.origin or f"{self.spec.kind} {self.spec.name!r}"


@dataclass(frozen=True)
class SectionChoice:
    """The sections of all installed plugins, by whether the configuration uses their specs.

    Attributes:
        used: sections that become part of the schema.
        unused: sections of installed specs that the configuration does not name.
        failures: errors of sections that could not be loaded, as sentences.
    """

    used: tuple[PluginSection, ...] = ()
    unused: tuple[PluginSection, ...] = ()
    failures: tuple[str, ...] = ()


def choose_sections(source: SpecSource, tree: RawMapping, root: RootSchema) -> SectionChoice:
    """Select the sections of the specs that ``tree``, or the schema's defaults, name."""
    used: list[PluginSection] = []
    unused: list[PluginSection] = []
    failures: list[str] = []
    for spec_type in SPEC_TYPES:
        names = root.named(spec_type.kind, tree)
        for spec in source.all(spec_type.kind):
            for section in spec.config:
                try:
                    schema = _load_schema(section.schema, spec)
                except ArchonError as error:
                    failures.append(f"section {section.path!r} of {spec.origin or spec.name}: {error}")
                    continue
                chosen = names is None or not names.isdisjoint((spec.name, *spec.aliases))
                (used if chosen else unused).append(PluginSection(section.path, schema, spec))
    return SectionChoice(tuple(used), tuple(unused), tuple(failures))


def build_schema(root: type, sections: Sequence[PluginSection]) -> type:
    """The dataclass ``root`` with the plugins' sections.

    An existing section becomes a dataclass that inherits from the original and the plugins' dataclasses; a new section
    becomes a new field.

    Raises:
        ConfigError: two plugins, or a plugin and ``root``, define the same option; or a section's path is an option.
    """
    # Several specs, such as two engines of one kind, may name the same section.
    unique = {(section.path, section.schema): section for section in reversed(sections)}
    return _schema_of(root, tuple(section for section in sections if unique[section.path, section.schema] is section))


@functools.cache  # so that two configurations of the same sections are of the same class, and can be equal
def _schema_of(root: type, sections: tuple[PluginSection, ...]) -> type:
    return _extend(root, "", [(tuple(section.path.split(".")), section) for section in sections])


@dataclass
class _EmptySection:
    """A section that exists only because of the sections below it."""


def _extend(base: type, path: str, placed: list[tuple[tuple[str, ...], PluginSection]]) -> type:
    if not placed:
        return base
    here = [section for keys, section in placed if not keys]
    _refuse_collisions(base, path, here)
    # The last base's fields come first: core's, then the plugins' in their order.
    bases = _without_superclasses([*(section.schema for section in reversed(here)), base])
    core = {f.name: f for cls in reversed(bases) for f in dataclasses.fields(cls)}
    annotations = {name: hint for cls in reversed(bases) for name, hint in typing.get_type_hints(cls).items()}
    fields: list[tuple[str, Any, Any]] = []
    below: dict[str, list[tuple[tuple[str, ...], PluginSection]]] = {}
    for keys, section in placed:
        if keys:
            below.setdefault(keys[0], []).append((keys[1:], section))
    for name, rest in below.items():
        child = f"{path}.{name}".lstrip(".")
        if name not in core:
            new = _extend(_EmptySection, child, rest)
            fields.append((name, new, field(default_factory=new)))
            continue
        old, optional = _section_type(annotations[name])
        if old is None:
            owner = rest[0][1].owner
            raise ConfigError(
                f"{owner} adds the section {rest[0][1].path!r}, but {child} is an option; rename the section"
            )
        new = _extend(old, child, rest)
        fields.append((name, new | None if optional else new, _upgraded_default(core[name], new)))

    def post_init(self: Any) -> None:
        for cls in reversed(bases):
            if hasattr(cls, "__post_init__"):
                cls.__post_init__(self)

    namespace: dict[str, Any] = {"__doc__": base.__doc__, "__module__": __name__}
    if any(hasattr(cls, "__post_init__") for cls in bases):
        namespace["__post_init__"] = post_init
    return dataclasses.make_dataclass(
        base.__name__ if base is not _EmptySection else f"Section_{path.replace('.', '_')}",
        fields,
        bases=tuple(bases),
        namespace=namespace,
    )


def _refuse_collisions(base: type, path: str, sections: Sequence[PluginSection]) -> None:
    owners = {f.name: (_package(_definer(base, f.name)), _definer(base, f.name)) for f in dataclasses.fields(base)}
    for section in sections:
        for f in dataclasses.fields(section.schema):
            definer = _definer(section.schema, f.name)
            owner, other = owners.setdefault(f.name, (section.owner, definer))
            if other is not definer:
                raise ConfigError(
                    f"option {path}.{f.name} is defined by both {owner} and {section.owner}; rename it in one of them; "
                    f"until then, disable one with ARCHON_DISABLE_PLUGINS"
                )


def _definer(cls: type, name: str) -> type:
    return next(c for c in cls.__mro__ if name in vars(c).get("__annotations__", {}))


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0].replace("_", "-")


def _without_superclasses(classes: Sequence[type]) -> list[type]:
    return [c for c in classes if not any(other is not c and issubclass(other, c) for other in classes)]


def _section_type(annotation: Any) -> tuple[type | None, bool]:
    """The dataclass that a field holds, if it holds one, and whether it may be null."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        members = [m for m in typing.get_args(annotation) if m is not type(None)]
        if len(members) == 1:
            return _section_type(members[0])[0], len(members) < len(typing.get_args(annotation))
        return None, False
    return (annotation if dataclasses.is_dataclass(annotation) else None), False


def _upgraded_default(old: dataclasses.Field[Any], new: type) -> Any:
    def make() -> Any:
        default = old.default_factory() if old.default_factory is not dataclasses.MISSING else old.default
        return upgrade(default, new)

    return field(default_factory=make)


def upgrade(instance: Any, new: type) -> Any:
    """``instance`` as an instance of ``new``, which has its fields and more; ``None`` stays ``None``."""
    if instance is None or type(instance) is new:
        return instance
    hints = field_types(new)
    values = {}
    for f in dataclasses.fields(instance):
        value = getattr(instance, f.name)
        section, _ = _section_type(hints[f.name])
        values[f.name] = upgrade(value, section) if section is not None else value
    return new(**values)


def _load_schema(target: str, spec: Spec) -> type:
    schema = load_target(target, origin=spec.origin)
    if not (isinstance(schema, type) and dataclasses.is_dataclass(schema)):
        raise ConfigError(f"{target!r} is no dataclass")
    missing = [
        f.name
        for f in dataclasses.fields(schema)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{target!r} has fields without a default: {', '.join(missing)}; give each one")
    return schema
