"""Worlds of several ranks in one test, the oracle that holds every layout against one process, tests for model authors.

``from archon_testing import ModelPluginSuite`` is all that a model package needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archon_testing.model_suite import ModelPluginSuite

__version__ = "0.1.0"
__all__ = ["ModelPluginSuite"]


def __getattr__(name: str) -> Any:
    """The suite, when it is asked for: the command line imports this package whenever it starts."""
    if name == "ModelPluginSuite":
        from archon_testing.model_suite import ModelPluginSuite

        return ModelPluginSuite
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
