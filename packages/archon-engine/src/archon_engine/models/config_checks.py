"""Checks of the entries of a ``transformers`` configuration that model packages have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from archon_core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def check_sizes(config: PreTrainedConfig, names: Iterable[str]) -> None:
    """Raise ModelError if one of the entries ``names`` is below 1; absent and null ones are left out."""
    for name in names:
        size = getattr(config, name, None)
        if size is not None and size < 1:
            raise ModelError(f"{config.model_type} configuration: {name}: found {size}; allowed are numbers from 1")


def check_divides(config: PreTrainedConfig, heads: str, shared: str) -> None:
    """Raise ModelError unless entry ``shared`` divides entry ``heads``, as key heads divide query heads."""
    of_heads, of_shared = getattr(config, heads), getattr(config, shared)
    if of_shared < 1 or of_heads % of_shared:
        raise ModelError(
            f"{config.model_type} configuration: found {heads} {of_heads} and {shared} {of_shared}; the second must "
            "divide the first"
        )


def layer_types(config: PreTrainedConfig, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The kind of every layer.

    Raises:
        ModelError: there is not one for every layer, or one is not among ``allowed``.
    """
    where, kinds = f"{config.model_type} configuration", tuple(config.layer_types)
    if len(kinds) != config.num_hidden_layers:
        raise ModelError(f"{where}: found {len(kinds)} layer_types for num_hidden_layers {config.num_hidden_layers}")
    unknown = sorted(set(kinds).difference(allowed))
    if unknown:
        raise ModelError(f"{where}: found layer_types {', '.join(unknown)}; allowed are {' and '.join(allowed)}")
    return kinds


def window_of_layers(config: PreTrainedConfig, *, fix: str) -> tuple[int | None, ...]:
    """The sliding window of every layer, ``None`` for full attention.

    Args:
        config: of the model.
        fix: what to set where windows have no size.

    Raises:
        ModelError: as ``layer_types``, or windows have no size.
    """
    kinds = layer_types(config, ("full_attention", "sliding_attention"))
    if "sliding_attention" in kinds and not config.sliding_window:
        raise ModelError(
            f"{config.model_type} configuration: found sliding_attention in layer_types but no sliding_window; "
            f"set {fix}"
        )
    return tuple(config.sliding_window if kind == "sliding_attention" else None for kind in kinds)
