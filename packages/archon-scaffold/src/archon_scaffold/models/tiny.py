"""Derives a test configuration of the same structure.

Scale factors and caps are set such that a missing one changes logits of order 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

LAYERS, VOCABULARY, HIDDEN, INTERMEDIATE = 4, 128, 32, 48
HEADS, HEAD_DIM, OTHER_HEAD_DIM = 4, 8, 12
WINDOW = 8
ROPE_LENGTH = 16
"""Below the longest test sequences, so that length-dependent rotations take effect."""

_TELLING: Mapping[str, float] = {
    "attn_logit_softcapping": 1.5,
    "final_logit_softcapping": 2.5,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.3,
    "logits_scaling": 2.0,
    "logit_scale": 0.5,
    "query_pre_attn_scalar": 20,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 1.5,
}

_EXPERTS: Mapping[str, int] = {
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "shared_expert_intermediate_size": 24,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}

LATENT_SIZES: Mapping[str, int] = {
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
}
"""Sizes of latent attention: all different, so that no size stands for another."""

_READ_BY_NAME = ("model_type", "head_dim", "rope_theta", "rope_scaling", "rope_parameters", *_EXPERTS)
"""Entries that are read by name even if the class does not declare them."""

OF_ALL_LAYERS = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Entries with a value per layer."""


def tiny_entries(entries: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The content of a small ``config.json`` of the family.

    Args:
        entries: of the given ``config.json``.
        config: the same, as ``transformers`` reads it.
    """
    known = inspect.signature(type(config).__init__).parameters
    ballast = unknown_entries(entries, config)
    grouped = getattr(config, "num_key_value_heads", None) not in (None, config.num_attention_heads)
    tiny = {name: value for name, value in entries.items() if name not in ballast and not _is_dropped(name, value)}
    tiny |= {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    tiny |= {name: size for name, size in _EXPERTS.items() if name in known}
    # DeepSeek-V2 has the entries for groups, and chooses among all experts if they are null.
    tiny |= {name: None for name in ("n_group", "topk_group") if name in known and getattr(config, name) is None}
    if "first_k_dense_replace" in known and not config.first_k_dense_replace:
        tiny["first_k_dense_replace"] = 0
    if getattr(config, "mlp_only_layers", None):
        tiny["mlp_only_layers"] = [1]
    if (getattr(config, "decoder_sparse_step", None) or 1) > 1:
        tiny["decoder_sparse_step"] = 2
    # Random numbers are equal to no others: what transformers drops in training cannot be compared.
    tiny |= {name: 0.0 for name in known if is_dropout(name) and getattr(config, name, None)}
    if config.pad_token_id is not None:
        # transformers gives the embedding of a padding token no gradient; here no token is special.
        tiny["pad_token_id"] = None
    for number, name in enumerate(("bos_token_id", "eos_token_id"), 1):
        own = getattr(config, name, None)
        if isinstance(own, list) or (own is not None and own >= VOCABULARY):
            tiny[name] = number
    tiny["num_key_value_heads"] = HEADS // 2 if grouped else HEADS
    head_dim = head_dim_of(config)
    sizes = LATENT_SIZES if is_latent(config) else {}
    tiny |= {name: None if getattr(config, name) is None else size for name, size in sizes.items()}
    if sizes:
        # The classes set it to the number of rotated elements.
        tiny.pop("head_dim", None)
    elif "head_dim" in known or "head_dim" in entries:
        alike = head_dim * config.num_attention_heads == config.hidden_size
        tiny["head_dim"] = HEAD_DIM if alike else OTHER_HEAD_DIM
    for name, value in _TELLING.items():
        if name in known and getattr(config, name, None) is not None:
            tiny[name] = value
    for name in OF_ALL_LAYERS:
        # By the class's own rule, a few layers may all be of one kind.
        values = entries.get(name) or getattr(config, name, None)
        if isinstance(values, list) and (name in entries or len(set(values)) > 1):
            tiny[name] = _some_of_each(values)
    if getattr(config, "sliding_window", None) is not None:
        tiny["sliding_window"] = WINDOW
    for name in ("rope_scaling", "rope_theta"):
        tiny.pop(name, None)
    # As transformers completes them: what a class has for a default is to show in tests, too.
    rotated = sizes.get("qk_rope_head_dim", tiny.get("head_dim", HEAD_DIM))
    tiny["rope_parameters"] = _short_rope(config.rope_parameters, rotated // 2)
    if "original_max_position_embeddings" in known:
        tiny["original_max_position_embeddings"] = ROPE_LENGTH
    return tiny


def unknown_entries(entries: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Entries that ``transformers``' class neither declares nor reads by name: remnants of other code in the
    ``config.json``."""
    known = {*inspect.signature(type(config).__init__).parameters, *_READ_BY_NAME}
    default = type(config)()
    return {name: value for name, value in entries.items() if name not in known and not hasattr(default, name)}


def is_latent(config: Any) -> bool:
    """Whether a configuration has all sizes of latent attention."""
    return all(hasattr(config, name) for name in LATENT_SIZES)


def is_dropout(name: str) -> bool:
    """Whether an entry is a dropout probability. Models never apply dropout; an engine with ``disable_dropout=false``
    refuses configurations with dropout."""
    return name.endswith(("dropout", "_pdrop", "dropout_prob", "dropout_rate"))


def head_dim_of(config: Any) -> int:
    """Size of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _is_dropped(name: str, value: Any) -> bool:
    """Whether an entry is irrelevant for the architecture, or refers to the full vocabulary."""
    described = ("architectures", "auto_map", "transformers_version", "torch_dtype", "dtype", "_name_or_path")
    return value is None or name in described or name.endswith("_token_id") or name.startswith("_")


def _some_of_each(kinds: list[Any]) -> list[Any]:
    """``LAYERS`` layer types in order of appearance, including every type."""
    different = list(dict.fromkeys(kinds))
    return [different[place % len(different)] for place in range(max(LAYERS, len(different)))][:LAYERS]


def _short_rope(parameters: Mapping[str, Any], n_frequencies: int) -> dict[str, Any]:
    short: dict[str, Any] = {}
    for name, value in parameters.items():
        if name == "original_max_position_embeddings":
            short[name] = ROPE_LENGTH
        elif isinstance(value, list):
            short[name] = value[:n_frequencies]
        else:
            short[name] = _short_rope(value, n_frequencies) if isinstance(value, Mapping) else value
    return short
