"""``PluginStatus``: the result of loading one plugin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from archon_core.contracts.spec import Spec

Status = Literal["loaded", "failed", "incompatible", "disabled"]

IN_PROCESS = "this process"
"""In place of a distribution's name, for specs added by ``registry().add``."""


@dataclass(frozen=True)
class PluginStatus:
    """The result of loading one entry point.

    Attributes:
        name: the entry point's name.
        distribution: name of its package, or the folder of its metadata if that has no name.
        version: of that package.
        module: the module of the entry point, such as ``archon_rl.plugin``.
        status: ``loaded``, ``failed`` (it raised), ``incompatible`` (another plugin API) or ``disabled``.
        cause: why it is not loaded, with a fix; empty if it is loaded.
        problems: problems of a loaded plugin: misspelt hooks, clashing names.
        specs: its specs; empty unless loaded.
        error: the exception behind ``cause``, if any.
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
    """``ValueError: the message``, or only the class if there is no message."""
    return f"{type(error).__name__}: {error}".rstrip(": ")
