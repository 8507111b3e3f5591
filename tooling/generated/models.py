"""Generates tables of docs/models.md and docs/layouts.md: the architectures of Archon's packages, and the axes."""

from __future__ import annotations

from collections.abc import Callable

from archon_core.layout.axes import AXIS_NAMES
from archon_engine.models.capabilities import CAPABILITY_OF_AXIS
from generated.model_capabilities import models
from generated.tables import code, codes, table

PROVIDERS = {"p": "archon-pipeline", "e": "archon-moe"}
"""Axes that need a package beside core."""


def render_models(is_ours: Callable[[str], bool]) -> str:
    """The table of architectures, from their specs."""
    rows = [
        [
            code(spec.name),
            codes(spec.model_types) or f"any, with `archon.model: {spec.name}`",
            spec.summary,
            ", ".join([spec.origin, *(f"archon-{need}" for need in spec.needs)]),
        ]
        for spec in models(is_ours)
    ]
    return table(["model", "`model_type`", "", "packages"], rows)


def render_axes() -> str:
    """What each axis asks of a model and of the installation."""
    rows = []
    for letter, name in AXIS_NAMES.items():
        capability = CAPABILITY_OF_AXIS.get(letter)
        rows.append([code(letter), name, code(capability or "") or "nothing", PROVIDERS.get(letter, "archon-engine")])
    return table(["letter", "axis", "a model declares", "package"], rows)
