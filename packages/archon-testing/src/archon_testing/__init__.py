"""Multi-rank worlds inside a test, the equivalence oracle for layouts, and a test suite for model packages.

A model package only needs ``from archon_testing import ModelPluginSuite``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archon_testing.model_suite import ModelPluginSuite

__version__ = "0.1.0"
__all__ = ["ModelPluginSuite"]


def __getattr__(name: str) -> Any:
    """Import the suite on first use: the command line imports this package whenever it starts."""
    if name == "ModelPluginSuite":
        from archon_testing.model_suite import ModelPluginSuite

        return ModelPluginSuite
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
