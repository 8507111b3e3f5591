"""What became of one plugin: loaded or not, why, and what it provides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from archon_core.contracts.spec import Spec

Status = Literal["loaded", "failed", "incompatible", "disabled"]

IN_PROCESS = "this process"
"""Stands for a distribution's name with specs that were added by ``registry().add``."""


@dataclass(frozen=True)
class PluginStatus:
    """What became of one entry point.

    Attributes:
        name: the entry point's name.
        distribution: what pip calls the package that brings it, or the folder of its metadata where pip has no name.
        version: of that package.
        module: what the entry point names, such as ``archon_rl.plugin``.
        status: ``loaded``, ``failed`` (it raised), ``incompatible`` (another plugin API) or ``disabled``.
        cause: why it is not loaded, and what to do; empty when it is.
        problems: what is wrong with a loaded plugin: misspelt hooks, names that another plugin provides too.
        specs: what it provides; empty unless loaded.
        error: the exception behind ``cause``, if there is one.
    """

    name: str
    distribution: str
    version: str
    module: str
    status: Status = "loaded"
    cause: str = ""
    problems: tuple[str, ...] = ()
    specs: tuple[Spec, ...] = ()
    error: BaseException | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".rstrip()


def describe_error(error: BaseException) -> str:
    """``ValueError: the message``, or the class alone when there is no message."""
    return f"{type(error).__name__}: {error}".rstrip(": ")
