"""Whether a transformers model can be split into pipeline stages, by its declaration and its traced run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from archon_models_hf.names import Names
from archon_models_hf.one_run import Passes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def no_pipeline(
    config: PreTrainedConfig, base: nn.Module, names: Names, passes: Passes, embeds: Tensor, last: Any
) -> str:
    """Why a base model cannot be split between layers, with a fix; empty if it can.

    A later stage runs the same forward pass with hidden states in place of embeddings. So nothing may run between
    embedding and layers, between layers, or after the norm.

    Args:
        config: of the model.
        base: transformers' base model.
        names: of its parts.
        passes: the record of the run.
        embeds: the embeddings that it was given.
        last: the hidden states that it returned.
    """
    plan = getattr(config, "base_model_pp_plan", None) or {}
    if not {names.layers, names.norm} <= set(plan):
        return _refused(f"transformers declares no pipeline plan for {config.model_type}")
    layers = list(getattr(base, names.layers))
    handed = [embeds, *(passes.outputs[layer] for layer in layers)]
    taken = [*(passes.inputs[layer] for layer in layers), passes.inputs[getattr(base, names.norm)]]
    if (
        any(a is not b for a, b in zip(handed, taken, strict=True))
        or passes.outputs[getattr(base, names.norm)] is not last
    ):
        return _refused(
            f"{type(base).__name__} of transformers computes with hidden states outside of its layers, which every "
            "stage would repeat"
        )
    weighted = [name for name in names.others if any(True for _ in getattr(base, name).parameters())]
    if weighted:
        return _refused(
            f"{type(base).__name__} of transformers has weights outside of its layers: {', '.join(weighted)}"
        )
    return ""


def _refused(reason: str) -> str:
    return f"{reason}; leave p out, and use d, t or c for more ranks"
