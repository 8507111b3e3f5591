"""Shrinks a ``config.json`` to a small model of the same structure, which ``archon verify`` can train on a laptop.

It keeps everything that determines computation and sharding: head counts, biases, norms, ties, rotary settings, layer
types, and divisibility of sizes by numbers up to 8. Sizes become those of the family's test configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LARGE = 20_000_000
"""Models with more parameters are shrunk: three steps of some twenty cases take seconds below this, minutes above."""

Entries = Mapping[str, Any]

_HEADS = ("num_attention_heads", "num_key_value_heads")
_LAYERS = "num_hidden_layers"
_TOP_K = "num_experts_per_tok"
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_EXACT = (_LAYERS, _TOP_K)
"""Sizes without divisibility constraints. Experts per token must stay below the number of experts."""
_DIVISORS = math.lcm(*range(1, 9))
_WINDOW = 8
_ROPE_LENGTH = 16
"""Below the longest sequence of the oracle, so that windows and length-dependent rotations take effect."""


def estimated_parameters(entries: Entries) -> int:
    """The approximate number of parameters of a decoder with these sizes; 0 if the names are unknown."""
    size = {name: value for name, value in entries.items() if isinstance(value, int)}
    hidden, vocabulary = size.get("hidden_size", 0), size.get("vocab_size", 0)
    attention = 4 * hidden * hidden
    dense = 3 * hidden * size.get("intermediate_size", 0)
    n_experts = next((size[name] for name in _EXPERTS if name in size), 0)
    experts = 3 * hidden * size.get("moe_intermediate_size", 0) * n_experts
    return size.get(_LAYERS, 0) * (attention + max(dense, experts)) + 2 * vocabulary * hidden


def shrink(entries: Entries, tiny: Entries) -> dict[str, Any]:
    """``entries`` with the sizes of ``tiny``.

    Args:
        entries: a ``config.json`` of the family.
        tiny: the plugin's test configuration. Every integer in both is a size, except head counts.
    """
    entries = _with_usual_names(entries)
    small = dict(entries)
    for name, size in tiny.items():
        if _is_size(size) and _is_size(entries.get(name)) and name not in _HEADS and entries[name] > size:
            small[name] = size if name in _EXACT else smallest_with_same_divisors(entries[name], least=size)
    if entries.get("n_group") and "n_routed_experts" in small:
        # A group ranks by its two best experts.
        least = max(small["n_routed_experts"], 2 * entries["n_group"])
        small["n_routed_experts"] = smallest_with_same_divisors(entries["n_routed_experts"], least=least)
    # Heads of latent attention have sizes that do not follow from the hidden size.
    if "hidden_size" in small and not entries.get("head_dim") and not entries.get("kv_lora_rank"):
        per_head = max(4, tiny.get("hidden_size", 0) // max(tiny.get("num_attention_heads", 1), 1))
        heads = entries.get("num_attention_heads", 1)
        small["hidden_size"] = min(entries["hidden_size"], heads * (per_head + per_head % 2))
    _shorten(small)
    vocabulary = small.get("vocab_size", 0)
    small = {name: value for name, value in small.items() if not (name.endswith("_token_id") and vocabulary)}
    return with_layers(small, small[_LAYERS]) if _LAYERS in small else small


def with_layers(entries: Entries, n_layers: int) -> dict[str, Any]:
    """``entries`` with at most ``n_layers`` layers, but at least one of every type in ``layer_types``."""
    kept = min(n_layers, entries.get(_LAYERS, n_layers))
    changed = dict(entries)
    kinds = entries.get("layer_types")
    if kinds:
        first_of_each = sorted({kind: place for place, kind in reversed(list(enumerate(kinds)))}.values())
        others = [place for place in range(len(kinds)) if place not in first_of_each]
        places = sorted([*first_of_each, *others[: max(0, kept - len(first_of_each))]])
        changed["layer_types"] = [kinds[place] for place in places]
        kept = len(places)
    changed |= _sparse_and_dense(entries, kept)
    windows_from = entries.get("max_window_layers")
    if isinstance(windows_from, int) and windows_from > 0 and entries.get("use_sliding_window"):
        changed["max_window_layers"] = max(1, min(windows_from, kept - 1))
    return {**changed, _LAYERS: kept}


def _sparse_and_dense(entries: Entries, kept: int) -> dict[str, Any]:
    """Changes that leave an expert layer, and a dense first layer if the model has any, among the first ``kept``
    layers."""
    if _TOP_K not in entries or _LAYERS not in entries:
        return {}
    if entries.get("first_k_dense_replace"):
        return {"first_k_dense_replace": min(entries["first_k_dense_replace"], kept - 1)}
    step, dense = entries.get("decoder_sparse_step") or 1, entries.get("mlp_only_layers") or []
    kinds = [layer not in dense and (layer + 1) % step == 0 for layer in range(entries[_LAYERS])]
    if set(kinds[:kept]) == set(kinds) or kept < 2:
        return {}
    return {"decoder_sparse_step": 1, "mlp_only_layers": [0]}


def _with_usual_names(entries: Entries) -> Entries:
    """Renames ``num_local_experts``, as transformers 5 writes it, to the name in published configurations."""
    if "num_local_experts" not in entries or "num_experts" in entries:
        return entries
    return {{"num_local_experts": "num_experts"}.get(name, name): value for name, value in entries.items()}


def deepen(entries: Entries, n_layers: int) -> dict[str, Any]:
    """``entries`` with at least ``n_layers`` layers; ``layer_types`` is repeated."""
    number = max(n_layers, entries.get(_LAYERS, n_layers))
    kinds = entries.get("layer_types")
    longer = {"layer_types": [kinds[place % len(kinds)] for place in range(number)]} if kinds else {}
    return {**entries, **longer, _LAYERS: number}


def smallest_with_same_divisors(extent: int, *, least: int) -> int:
    """The smallest number between ``least`` and ``extent`` with the same divisors up to 8 as ``extent``."""
    common = math.gcd(extent, _DIVISORS)
    number = -(-least // common) * common
    while math.gcd(number, _DIVISORS) != common:
        number += common
    return min(number, extent)


def changes(before: Entries, after: Entries) -> tuple[str, ...]:
    """The changed entries, such as ``hidden_size 4096 -> 32``."""
    shown = [
        (name, value, after.get(name)) for name, value in before.items() if after.get(name) != value and _is_size(value)
    ]
    return tuple(f"{name} {value} -> {new}" for name, value, new in shown if new is not None)


def _shorten(small: dict[str, Any]) -> None:
    """Shorten windows and rotary lengths in place, so that the oracle's sequences exceed them."""
    if _is_size(small.get("sliding_window")):
        small["sliding_window"] = min(small["sliding_window"], _WINDOW)
    per_head = small.get("head_dim") or small.get("hidden_size", 0) // max(small.get("num_attention_heads", 1), 1)
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(small.get(name), Mapping):
            small[name] = {key: _shortened(key, value, per_head // 2) for key, value in small[name].items()}
    if _is_size(small.get("original_max_position_embeddings")):
        small["original_max_position_embeddings"] = _ROPE_LENGTH


def _shortened(key: str, value: Any, n_frequencies: int) -> Any:
    if key == "original_max_position_embeddings":
        return _ROPE_LENGTH
    return value[:n_frequencies] if isinstance(value, list) else value


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
