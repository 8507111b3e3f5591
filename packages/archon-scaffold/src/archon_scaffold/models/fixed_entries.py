"""Entries of a configuration that a written package neither reads nor may ignore."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from archon_scaffold.models.architecture import Architecture
from archon_scaffold.models.source import HFSource

_READ_BY_ALL = frozenset(
    {
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rope_parameters",
        "rope_theta",
        "rope_scaling",
        "tie_word_embeddings",
        "attention_dropout",
    }
)

_HARMLESS = frozenset({"self", "kwargs", "use_cache", "initializer_range", "pretraining_tp"})
"""Entries that change no number of a forward pass."""

_OF_WINDOWS: Mapping[str | None, tuple[str, ...]] = {
    "layer_types": ("layer_types", "sliding_window", "use_sliding_window", "max_window_layers"),
    "all": ("sliding_window",),
    None: (),
}


def fixed_entries(source: HFSource, found: Architecture) -> Mapping[str, Any]:
    """Entry -> the value that the package is written for; entries that stand in ``transformers``' class."""
    from transformers import PreTrainedConfig

    expressions = " ".join((found.scale, found.embedding_scale, found.residual_scale, found.logit_scale))
    read = _READ_BY_ALL | {found.norm_eps, found.activation, *_OF_WINDOWS[found.windows]}
    read |= {"attn_logit_softcapping"} if found.attention_softcap else set()
    read |= {"final_logit_softcapping"} if found.logit_softcap else set()
    general = set(vars(PreTrainedConfig())) | set(inspect.signature(PreTrainedConfig.__init__).parameters)
    return {
        name: getattr(source.config, name, None)
        for name in inspect.signature(type(source.config).__init__).parameters
        if name not in read | general | _HARMLESS
        and not name.endswith("_token_id")
        and f"config.{name}" not in expressions
    }
