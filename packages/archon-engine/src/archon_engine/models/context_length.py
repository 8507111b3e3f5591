"""Reads the longest sequence of a model from its configuration, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from archon_engine.nn.rotary import fixed_frequencies_reach, rotary_reach


@dataclass(frozen=True)
class ContextLength:
    """Limits in tokens; ``None`` where there is no limit.

    Attributes:
        positions: length of the longest sequence that the model supports.
        generation: length of the longest sequence that can be generated token by token. Above it, rotary frequencies
            depend on the final length, so cached keys would be wrong.
    """

    positions: int | None = None
    generation: int | None = None


def context_length(config: Any) -> ContextLength:
    """The limits of a ``transformers`` configuration.

    Linear scaling and YaRN extend ``max_position_embeddings``. Scaling per layer type is ignored.
    """
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    named = getattr(config, "max_position_embeddings", None)
    if not isinstance(named, int) or named < 1:
        return ContextLength()
    parameters = getattr(config, "rope_parameters", None) or {}
    if not isinstance(parameters.get("rope_type"), str) or any(isinstance(v, Mapping) for v in parameters.values()):
        return ContextLength(named, named)
    positions = rotary_reach(named, parameters)
    fixed = fixed_frequencies_reach(named, parameters)
    return ContextLength(positions, positions if fixed is None else min(positions, fixed))
