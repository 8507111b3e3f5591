"""Imports the modules of installed plugins and of their options, once in a fork server instead of in each fork.

Forks look for plugins again, since some may have been installed, disabled or added to the path in the meantime, but
their modules are in memory. A plugin that cannot be loaded is an error of the fork that needs it, not of its server.
"""

from __future__ import annotations

import contextlib

from archon_core.contracts.spec import load_target
from archon_core.plugins import SPEC_TYPES, registry


def import_plugins() -> None:
    """Import what the registry of a new process would import, and the schemas of all options."""
    sections = [section for kind in SPEC_TYPES for spec in registry().all(kind) for section in spec.config]
    for section in sections:
        with contextlib.suppress(Exception):
            load_target(section.schema)


with contextlib.suppress(Exception):
    import_plugins()
registry.cache_clear()
