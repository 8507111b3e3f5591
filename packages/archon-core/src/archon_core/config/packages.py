"""Packages that a configuration needs and that are not there, or lack what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archon_core.plugins import Registry


@dataclass(frozen=True)
class MissingPackage:
    """A package, what is the matter with it, and what to do.

    Attributes:
        name: what pip calls it.
        matter: such as ``is not installed``.
        command: what helps; empty when ``matter`` says it.
    """

    name: str
    matter: str
    command: str = ""

    def __str__(self) -> str:
        return f"part of {self.name}, which {self.matter}" + (f": {self.command}" if self.command else "")


def missing_package(name: str, registry: Registry) -> MissingPackage:
    """Why a package does not provide what it should: not installed, not loaded, or too old."""
    from archon_core.plugins.discovery import normalise

    for plugin in registry.plugins:
        if normalise(plugin.distribution) == name:
            if plugin.status == "disabled":
                return MissingPackage(name, f"is installed but {plugin.cause}")
            if plugin.cause:
                return MissingPackage(name, f"is installed but {plugin.status}: {plugin.cause}")
            version = f" ({plugin.version})" if plugin.version else ""
            matter = f"is installed{version} but does not have it; a newer version may"
            return MissingPackage(name, matter, f"pip install --upgrade {name}")
    return MissingPackage(name, "is not installed", f"pip install {name}")
