"""``ToolSource``: where a tool comes from, as plain data for tool processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archon_core.contracts.spec import load_target


@dataclass(frozen=True)
class ToolSource:
    """A tool that is not imported yet.

    Attributes:
        name: by which models call it.
        target: ``module:function``.
        origin: the distribution that provides it; empty for a function of a user's own module.
        folder: of a user's own module, which is imported from there; empty for an installed one.
        place: see ``ToolSpec``.
    """

    name: str
    target: str
    origin: str = ""
    folder: str = ""
    place: str = "tool_process"

    def load(self) -> Any:
        return load_target(self.target, origin=self.origin)
