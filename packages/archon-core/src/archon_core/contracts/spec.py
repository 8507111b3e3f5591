"""The spec: a frozen dataclass that describes a plugin and names its heavy parts as import targets.

Specs are cheap to create and to list; ``spec.load()`` imports the target. Each kind of spec is defined beside the
protocol that its target satisfies, one module per topic.
"""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from archon_core.errors import ArchonError, PluginError
from archon_core.installing import update_advice


def load_target(target: str, *, origin: str = "") -> Any:
    """Import ``"package.module:attribute"`` and return the attribute.

    Args:
        target: the target.
        origin: distribution that names it, for messages.

    Raises:
        PluginError: the target has another form, its module cannot be imported, or the attribute does not exist.
        ArchonError: the module raised it while it was imported.
    """
    described = f"target {target!r} of {origin}" if origin else f"target {target!r}"
    fix = f"; correct the spec, or update its package: {update_advice(origin)}" if origin else ""
    module_name, colon, attribute = target.partition(":")
    if not colon or not module_name or not attribute:
        raise PluginError(f"{described}: found no 'package.module:attribute'; write it in that form")
    try:
        loaded: Any = importlib.import_module(module_name)
    except ArchonError:
        raise  # on purpose, such as about an extra that is not installed
    except Exception as error:
        # A module may raise anything while it is imported; the message names its package.
        raise PluginError(
            f"{described}: importing {module_name!r} failed: {type(error).__name__}: {error}{fix}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(loaded, part):
            raise PluginError(f"{described}: {module_name!r} was imported but has no attribute {attribute!r}{fix}")
        loaded = getattr(loaded, part)
    return loaded


@dataclass(frozen=True)
class ConfigSection:
    """Options that a plugin adds to the configuration.

    Attributes:
        path: section that gets the options: an existing one (``"actor"``), whose dataclass is extended, or a new one.
        schema: import target of a dataclass with a default for every field. Its module must not import torch, because
            every reading of a configuration loads it.
    """

    path: str
    schema: str


@dataclass(frozen=True)
class Spec:
    """Fields of every kind of spec.

    Attributes:
        name: the name that users write; unique per kind over all installed plugins.
        target: ``"package.module:attribute"`` of the object that ``load()`` returns.
        aliases: alternative names; unique like ``name``.
        summary: one line for ``archon plugins``.
        config: options that the spec adds to the configuration.
        origin: distribution that provides the spec; the registry sets it. Empty for a spec added in process.
    """

    kind: ClassVar[str]
    hook: ClassVar[str]

    name: str
    target: str
    aliases: tuple[str, ...] = ()
    summary: str = ""
    config: tuple[ConfigSection, ...] = ()
    origin: str = field(default="", kw_only=True, compare=False)

    def load(self) -> Any:
        """Import and return what ``target`` names; see ``archon_core.contracts`` for its interface."""
        return load_target(self.target, origin=self.origin)

    def load_part(self, part: str) -> Any:
        """Import what another field names.

        Raises:
            PluginError: the field is empty; see also ``load_target``.
        """
        target = getattr(self, part)
        if not target:
            origin = f" of {self.origin}" if self.origin else ""
            raise PluginError(
                f"{self.kind} {self.name!r}{origin}: its {part} is empty; set it in the {type(self).__name__} to "
                "'package.module:attribute'"
            )
        return load_target(target, origin=self.origin)

    def as_data(self) -> dict[str, Any]:
        """All fields but ``origin`` as JSON values: tuples become lists, sets sorted lists."""
        fields = {name: value for name, value in asdict(self).items() if name != "origin"}
        return {
            name: sorted(value) if isinstance(value, frozenset) else list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
        }
