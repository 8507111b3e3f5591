"""Archon's core: contracts, plugin registry, layouts, configuration and the engine that assembles the rest.

Importing this package imports no torch; the heavy parts are imported by the functions that use them.
"""

from archon_core.errors import ArchonError
from archon_core.layout import Layout, parse_layout
from archon_core.plugins import PLUGIN_API, registry

__version__ = "0.1.0"

__all__ = ["PLUGIN_API", "ArchonError", "Layout", "__version__", "parse_layout", "registry"]
