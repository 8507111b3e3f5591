"""Checks of ``moe_routing_replay``, for dry runs and the engine. Imports no torch."""

from __future__ import annotations

from archon_core.contracts.model import ModelSpec
from archon_core.contracts.rollout import RolloutConfig
from archon_engine.options.archon import ArchonEngineConfig


def replay_without_experts(config: ArchonEngineConfig, model: ModelSpec, *, role: str) -> str | None:
    """The error for replay in a model without experts; ``None`` if there is none."""
    if not config.archon.moe_routing_replay or "moe" in model.needs:
        return None
    return f"{_option(role)}: found true; model {model.name!r} has no experts; set it to false"


def replay_without_record(config: ArchonEngineConfig, rollout: RolloutConfig | None, *, role: str) -> str | None:
    """The error for replay of completions that record no experts; ``None`` if there is none.

    Args:
        rollout: the rollout options; ``None`` for an algorithm that samples no completions.
    """
    if not config.archon.moe_routing_replay:
        return None
    if rollout is None:
        return (
            f"{_option(role)}: found true; this algorithm samples no completions whose experts could be replayed; "
            "set it to false"
        )
    if not rollout.return_routed_experts:
        return (
            f"{_option(role)}: found true with rollout.return_routed_experts=false; there would be nothing to "
            "replay; set rollout.return_routed_experts=true, too"
        )
    return None


def _option(role: str) -> str:
    return f"{role}.archon.moe_routing_replay"
