"""What the option ``workflow`` names: a workflow of a plugin, or a factory in a user's own module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from archon_core.contracts.workflows import WORKFLOW_PARAMETERS, WorkflowSpec
from archon_core.plugins.own_functions import OwnFunction
from archon_core.plugins.own_or_plugin import choose
from archon_core.plugins.registry import Registry


def choose_workflow(
    text: str, registry: Registry, *, folders: Sequence[Path] | None = None
) -> WorkflowSpec | OwnFunction:
    """The workflow that ``text`` names; see ``choose``."""
    return choose(WorkflowSpec, text, WORKFLOW_PARAMETERS, registry, folders=folders)
