"""Limits that a model sets for generation."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.contracts.model import CausalModule
from archon_core.contracts.module import max_positions
from archon_core.errors import ModelError
from archon_engine.models.staged import outline_of
from archon_engine.nn.head import ValueHead
from archon_engine.nn.rotary import RotaryEmbedding


@dataclass(frozen=True)
class ModelLimits:
    """Limits that requests are checked against.

    Attributes:
        vocab_size: token ids are below this.
        max_positions: longest sequence of the model; ``None`` for no limit.
        length_dependent_above: above this length, rotary frequencies depend on the final length of the sequence, and
            cached keys would be wrong; ``None`` if they never do.
    """

    vocab_size: int
    max_positions: int | None = None
    length_dependent_above: int | None = None


def model_limits(module: CausalModule) -> ModelLimits:
    """The limits of ``module``: of its rotary embeddings, or what it declares (``contracts.module.max_positions``).

    Raises:
        ModelError: the module holds only some of the model's layers, or is a critic.
    """
    module = outline_of(module)
    if module.embed is None or module.head is None:
        missing = "embedding" if module.embed is None else "head"
        raise ModelError(
            f"local engine: found a module without {missing}; allowed is a whole model, or the module of an engine "
            "with pipeline stages; pass the engine's module"
        )
    if isinstance(module.head, ValueHead):
        raise ModelError(
            "local engine: found a critic, whose value head gives no logits; generate with the actor's engine"
        )
    rotations = [part.arguments for part in module.modules() if isinstance(part, RotaryEmbedding)]
    thresholds = [a.length_dependent_above for a in rotations if a.length_dependent_above is not None]
    return ModelLimits(
        vocab_size=module.embed.weight.shape[0],
        max_positions=min((rope.reach for rope in rotations), default=max_positions(module)),
        length_dependent_above=min(thresholds, default=None),
    )
