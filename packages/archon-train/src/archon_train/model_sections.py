"""Checks of the sections that describe models beside the actor, before a run starts. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine_config import EngineConfig
from archon_core.contracts.model import ModelSpec
from archon_core.contracts.train import AlgorithmSpec


def missing_sections(config: Any, algorithm: AlgorithmSpec) -> Iterator[str]:
    """Problems: models that the algorithm needs, and the configuration does not have."""
    for section in algorithm.sections:
        if getattr(config, section, None) is None:
            yield (
                f"{section}: found no section, and algorithm {algorithm.name!r} needs one; add '{section}: {{}}', "
                "which starts from the actor's initial weights, or choose another algorithm"
            )


def unused_critic(config: Any, algorithm: AlgorithmSpec) -> Iterator[Decision]:
    """The decision about a critic that the algorithm does not train."""
    if config.critic is not None and "critic" not in algorithm.sections:
        reason = f"algorithm {algorithm.name} has no value model; algorithm=ppo trains one"
        yield Decision("critic", "a section", "not used", reason)


def critic_problems(critic: EngineConfig, model: ModelSpec | None, explicit: Collection[str]) -> Iterator[str]:
    """Why ``model``, if it is known, cannot have a value head, or the options do not ask for one."""
    if "critic.is_critic" in explicit and not critic.is_critic:
        yield "critic.is_critic: found false; the critic has a value head; leave it out, or set it to true"
    if model is not None and "critic" not in model.capabilities:
        yield (
            f"critic: found a model of {model.name!r}, which has no value head; set critic.path to a model that "
            "supports critic (`archon models`)"
        )
