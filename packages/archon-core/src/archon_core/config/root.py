"""``RootSchema``: the dataclass of a configuration file's top level, and the options that name plugins.

Core reads configurations of any schema; the package that runs them provides it (``archon_train.experiment``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from archon_core.config.raw import RawMapping, RawScalar, follow
from archon_core.config.typed import field_types, section_of
from archon_core.contracts.engine import TrainEngineSpec


@dataclass(frozen=True)
class RootSchema:
    """The schema of a configuration file.

    Attributes:
        schema: dataclass of the top level; every field has a default.
        selectors: kind of spec -> the options that name one. Specs of other kinds are used whenever installed.
    """

    schema: type
    selectors: Mapping[str, tuple[str, ...]]

    def with_engines(self, engines: Iterable[TrainEngineSpec]) -> RootSchema:
        """The schema with the engines' own selector options, for each role with a backend."""
        roles = [option.partition(".")[0] for option in self.selectors.get(TrainEngineSpec.kind, ())]
        selectors = dict(self.selectors)
        for kind, name in dict.fromkeys(selector for engine in engines for selector in engine.selectors):
            selectors[kind] = (*selectors.get(kind, ()), *(f"{role}.{name}" for role in roles))
        return replace(self, selectors=selectors)

    def named(self, kind: str, tree: RawMapping) -> frozenset[str] | None:
        """The names of ``kind`` that a configuration uses; ``None`` for all installed ones."""
        names: set[str] = set()
        for option in self.selectors.get(kind, ()):
            section = option.partition(".")[0]
            may_be_null = "." in option and default_of(self.schema, section) is None  # such as the critic
            if may_be_null and not isinstance(tree.get(section), RawMapping):
                continue
            text = self.text_at(tree, option)
            if may_be_null and not text:
                continue  # it inherits, as a critic does the actor's engine
            text = text or default_text(self.schema, option)  # null chooses the default, such as the local launcher
            if text is None or "${" in text:
                return None
            if option.endswith(".backend"):
                text = text.partition(":")[0]
            names.add(text.strip())
        return frozenset(names) or None

    def text_at(self, tree: RawMapping, option: str) -> str | None:
        """The text of an option, with ``${...}`` resolved; the schema's default if it is not set."""
        option, node = follow(tree, option)
        if node is None:
            return default_text(self.schema, option)
        return node.text if isinstance(node, RawScalar) and not node.is_null else None


def default_text(schema: type, option: str) -> str | None:
    """The default of an option, as a file would write it; ``None`` if it is null or ``schema`` has no such option."""
    value = default_of(schema, option)
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)


def default_of(schema: type, option: str) -> Any:
    """The default of a dotted option; ``None`` if it is null or ``schema`` has no such option.

    An option of a section that is null by default has the default that it gets once the section is written.
    """
    value, annotation = schema(), schema
    for key in option.split("."):
        section = section_of(annotation)
        if section is None:
            return None
        value = getattr(section() if value is None else value, key, None)
        annotation = field_types(section).get(key)
    return value
