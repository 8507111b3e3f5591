"""A reference without a second model: the actor with its adapters switched off. Imports no torch.

Adapters leave the model's own weights as they are, so these stay the weights that the reference has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from archon_core.contracts.adapters import AdapterSpec
from archon_core.contracts.decisions import Decision
from archon_core.contracts.serving import ServerDriverSpec
from archon_core.plugins import registry
from archon_core.ranks.role_ranks import ACTOR

OF_OTHER_WEIGHTS = ("path", "model_config", "init_from_scratch")
"""Options of ``ref`` that give it other weights than the actor's."""

PLACING = ("backend", "scheduling_strategy")
"""Options of ``ref`` that place it on other ranks, or on the actor's with another layout."""


def has_adapters(section: Any) -> bool:
    """Whether a model's section switches adapters on."""
    return any(getattr(section, spec.option, False) for spec in registry().all(AdapterSpec))


def receives_adapters(rollout: Any) -> bool:
    """Whether the servers of the section ``rollout`` can receive adapters apart by its transport."""
    kind = rollout.backend.partition(":")[0]
    return any(
        spec.adapters or (rollout.weight_transport or spec.transports[0]) in spec.adapter_folders
        for spec in registry().all(ServerDriverSpec)
        if spec.name == kind
    )


def is_actor_without_adapters(config: Any) -> bool:
    """Whether the reference of a run is the actor with its adapters switched off.

    The reference is a separate model if its section gives it other weights, adapters, another layout or other ranks.
    """
    ref, actor = config.ref, config.actor
    if ref is None or not has_adapters(actor) or has_adapters(ref):
        return False
    strategy = ref.scheduling_strategy
    is_apart = strategy is not None and strategy.type is not None and strategy.target != ACTOR
    names = (*OF_OTHER_WEIGHTS, "backend")
    return not is_apart and all(getattr(ref, name) in (None, "", False, getattr(actor, name)) for name in names)


def reference_decisions(config: Any) -> Iterator[Decision]:
    """The decision about such a reference."""
    if is_actor_without_adapters(config):
        reason = "adapters leave the weights that both start from as they are; another ref.backend builds a model"
        yield Decision("ref", "a model", "the actor without its adapters", reason)
