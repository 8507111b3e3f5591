"""A configuration of the same structure that is small enough for tests.

Numbers that a model multiplies by, and caps, are set so that leaving one out would show in logits of order 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LAYERS, VOCABULARY, HIDDEN, INTERMEDIATE = 4, 128, 32, 48
HEADS, HEAD_DIM, OTHER_HEAD_DIM = 4, 8, 12
WINDOW = 8
ROPE_LENGTH = 16
"""Below the longest sequences of tests, so that rotations that look at lengths show."""

_TELLING: Mapping[str, float] = {
    "attn_logit_softcapping": 1.5,
    "final_logit_softcapping": 2.5,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.3,
    "logits_scaling": 2.0,
    "logit_scale": 0.5,
    "query_pre_attn_scalar": 20,
}

_OF_ALL_LAYERS = ("layer_types", "mlp_layer_types", "no_rope_layers")


def tiny_entries(entries: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The content of a small ``config.json`` of the family.

    Args:
        entries: of the ``config.json`` at hand.
        config: the same, as ``transformers`` reads it.
    """
    grouped = getattr(config, "num_key_value_heads", None) not in (None, config.num_attention_heads)
    tiny = {name: value for name, value in entries.items() if not _is_dropped(name, value)}
    tiny |= {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        # Others lie outside of the small vocabulary, and transformers warns of that.
        "bos_token_id": None,
        "eos_token_id": None,
        # transformers gives the embedding of a padding token no gradient; here no token is special.
        "pad_token_id": None,
    }
    tiny["num_key_value_heads"] = HEADS // 2 if grouped else HEADS
    head_dim = _head_dim(config)
    if "head_dim" in entries or head_dim * config.num_attention_heads != config.hidden_size:
        tiny["head_dim"] = OTHER_HEAD_DIM
    for name, value in _TELLING.items():
        if getattr(config, name, None) is not None:
            tiny[name] = value
    for name in _OF_ALL_LAYERS:
        if name in entries and isinstance(entries[name], list):
            tiny[name] = _some_of_each(entries[name])
    if getattr(config, "sliding_window", None) is not None:
        tiny["sliding_window"] = WINDOW
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(entries.get(name), Mapping):
            tiny[name] = _short_rope(entries[name], tiny.get("head_dim", HIDDEN // HEADS) // 2)
    return tiny


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _is_dropped(name: str, value: Any) -> bool:
    """What says nothing about the architecture, or refers to the large one's vocabulary."""
    described = ("architectures", "auto_map", "transformers_version", "torch_dtype", "dtype", "_name_or_path")
    return value is None or name in described or name.endswith("_token_id") or name.startswith("_")


def _some_of_each(kinds: list[Any]) -> list[Any]:
    """``LAYERS`` of the kinds, in their order of appearance, every kind among them."""
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
