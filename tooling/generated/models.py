"""Generates docs/reference/models.md: the architectures of Archon's packages and the axes that each supports."""

from __future__ import annotations

from collections.abc import Callable

from archon_core.layout.axes import AXIS_NAMES
from archon_core.plugins import ModelSpec, registry
from archon_engine.models.capabilities import CAPABILITY_OF_AXIS
from generated.tables import code, codes, table

PROVIDERS = {"p": "archon-pipeline", "e": "archon-moe"}
"""Axes that need a package beside core."""


def render_models(is_ours: Callable[[str], bool]) -> str:
    """The table of architectures, from their specs."""
    letters = [letter for letter in AXIS_NAMES if letter not in CAPABILITY_OF_AXIS] + list(CAPABILITY_OF_AXIS)
    rows = []
    for spec in _models(is_ours):
        axes = [letter for letter in letters if _runs(spec, letter)]
        rows.append(
            [
                code(spec.name),
                codes(spec.model_types) or f"any, with `archon.model: {spec.name}`",
                spec.summary,
                " ".join(map(code, axes)),
                "yes" if "tied" in spec.capabilities else "no",
                "yes" if "critic" in spec.capabilities else "no",
                ", ".join([spec.origin, *(f"archon-{need}" for need in spec.needs)]),
            ]
        )
    return table(["model", "`model_type`", "", "layouts", "tied head", "critic", "packages"], rows)


def render_axes() -> str:
    """What each axis asks of a model and of the installation."""
    rows = []
    for letter, name in AXIS_NAMES.items():
        capability = CAPABILITY_OF_AXIS.get(letter)
        rows.append([code(letter), name, code(capability or "") or "nothing", PROVIDERS.get(letter, "archon-engine")])
    return table(["letter", "axis", "a model declares", "package"], rows)


def _models(is_ours: Callable[[str], bool]) -> list[ModelSpec]:
    return sorted((spec for spec in registry().all(ModelSpec) if is_ours(spec.origin)), key=lambda spec: spec.name)


def _runs(spec: ModelSpec, letter: str) -> bool:
    capability = CAPABILITY_OF_AXIS.get(letter)
    return capability is None or capability in spec.capabilities
