"""Archon's core: what the parts promise one another, which parts are installed, and how they are put together.

Layouts, contracts, the plugin registry and the reading of configurations. Nothing here imports torch but the modules
about tensors (``contracts.batch``, ``contracts.packed``).
"""

from archon_core.assembly import assemble
from archon_core.errors import ArchonError
from archon_core.layout import Layout, parse_layout
from archon_core.plugins import PLUGIN_API, registry

__version__ = "0.1.0"

__all__ = ["PLUGIN_API", "ArchonError", "Layout", "__version__", "assemble", "parse_layout", "registry"]
