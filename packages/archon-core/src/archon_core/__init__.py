"""Archon's core: what the parts promise one another, which parts are installed, and how they are put together.

Layouts, contracts, the plugin registry and the reading of configurations. Nothing here imports torch but the modules
about tensors (``contracts.batch``, ``contracts.packed``). Each name is imported when it is first used: a command that
reads no configuration does not wait for the code that does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archon_core.assembly import assemble
    from archon_core.errors import ArchonError
    from archon_core.layout import Layout, parse_layout
    from archon_core.plugins import PLUGIN_API, registry

__version__ = "0.1.0"

__all__ = ["PLUGIN_API", "ArchonError", "Layout", "__version__", "assemble", "parse_layout", "registry"]


def __getattr__(name: str) -> Any:
    homes = {
        "PLUGIN_API": "plugins",
        "ArchonError": "errors",
        "Layout": "layout",
        "assemble": "assembly",
        "parse_layout": "layout",
        "registry": "plugins",
    }
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"archon_core.{homes[name]}"), name)
    globals()[name] = value  # looked up once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
