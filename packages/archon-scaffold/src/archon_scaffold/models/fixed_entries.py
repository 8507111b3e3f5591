"""Configuration entries that a generated package does not read, but must not ignore."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from archon_core.errors import ModelError
from archon_engine.models.hf_config import refuse_unknown_entries
from archon_scaffold.models.architecture import Architecture, Gap
from archon_scaffold.models.source import SIZES, HFSource
from archon_scaffold.models.tiny import LATENT_SIZES, is_dropout, unknown_entries

_READ_BY_ALL = frozenset(
    {
        *SIZES,
        "rope_parameters",
        "rope_theta",
        "rope_scaling",
        "tie_word_embeddings",
        "original_max_position_embeddings",
    }
)

_HARMLESS = frozenset(
    {
        "self",
        "kwargs",
        "use_cache",
        "initializer_range",
        "embedding_initializer_range",
        "pretraining_tp",
        # Expert balancing is an option of the engine.
        "output_router_logits",
        "router_aux_loss_coef",
    }
)
"""Entries that do not affect a forward pass."""

_OF_WINDOWS: Mapping[str | None, tuple[str, ...]] = {
    "layer_types": ("layer_types", "sliding_window", "use_sliding_window", "max_window_layers"),
    "all": ("sliding_window",),
    None: (),
}


def fixed_entries(source: HFSource, small: Any, found: Architecture) -> tuple[Mapping[str, Any], tuple[Gap, ...]]:
    """Entry -> the value that the package supports; and a gap for each entry that is neither read nor fixable.

    Args:
        source: the given configuration.
        small: the test configuration, as ``transformers`` reads it.
        found: the architecture, which determines the entries that are read.
    """
    from transformers import PreTrainedConfig

    expressions = " ".join((found.scale, found.embedding_scale, found.residual_scale, found.logit_scale, found.rotates))
    read = _READ_BY_ALL | {found.norm_eps, *_OF_WINDOWS[found.windows]}
    # Clamped experts have an activation that no entry names.
    read |= set() if found.experts is not None and found.experts.clamped else {found.activation}
    if found.latent is not None:
        read |= {name for name in LATENT_SIZES if name != "q_lora_rank" or found.latent.low_rank_queries}
        expressions += f" {found.latent.interleaved}"
    read |= {"attn_logit_softcapping"} if found.attention_softcap else set()
    read |= {"final_logit_softcapping"} if found.logit_softcap else set()
    if found.experts is not None:
        expressions += f" {found.experts.expressions}"
        read |= {found.experts.number, found.experts.per_token, found.experts.size, "norm_topk_prob"}
        read |= {"n_group", "topk_group"} if found.experts.grouped else set()
    # The default of no_rope_layers.
    read |= {"no_rope_layer_interval"} if "no_rope_layers" in found.rotates else set()
    general = set(vars(PreTrainedConfig())) | set(inspect.signature(PreTrainedConfig.__init__).parameters)
    unread = [
        name
        for name in inspect.signature(type(source.config).__init__).parameters
        if name not in read | general | _HARMLESS
        and not name.endswith("_token_id")
        and not is_dropout(name)
        and f"config.{name}" not in expressions
    ]
    values = {name: getattr(source.config, name, None) for name in unread}
    # A value that changes with the sizes is not a structural option.
    fixed = {name: value for name, value in values.items() if _is_plain(value) and value == getattr(small, name, None)}
    fixed |= _refused_unless_honoured(source)
    reported = " ".join(gap.text for gap in found.gaps)
    return fixed, tuple(
        Gap("arguments", f"the configuration's {name} is not read: {_short(value)}")
        for name, value in values.items()
        if name not in fixed and name not in reported
    )


def _refused_unless_honoured(source: HFSource) -> dict[str, Any]:
    """Entries that ``transformers`` does not know, so that packages refuse them by default; this package accepts the
    values with which it was compared."""
    unknown = unknown_entries(source.entries, source.config)

    def is_refused(name: str) -> bool:
        try:
            refuse_unknown_entries(source.config, honoured=vars(source.config).keys() - {name})
        except ModelError as error:
            return f"{name} = " in str(error)
        return False

    return {name: value for name, value in unknown.items() if is_refused(name)}


def _is_plain(value: Any) -> bool:
    """Whether a value consists of plain JSON types, not of nested configurations."""
    if isinstance(value, Mapping):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:56]} ..."
