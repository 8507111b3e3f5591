"""Configurations of the families that are small enough for tests and for ``archon verify``."""

from __future__ import annotations

from typing import Any


def tiny_qwen2() -> dict[str, Any]:
    """A Qwen2 of some 30 thousand parameters, as the content of a ``config.json``."""
    return {"model_type": "qwen2", **_SIZES}


def tiny_qwen3() -> dict[str, Any]:
    """A Qwen3 of some 30 thousand parameters, as the content of a ``config.json``."""
    return {"model_type": "qwen3", "head_dim": 8, **_SIZES}


def tiny_qwen3_moe() -> dict[str, Any]:
    """A Qwen3-MoE of some 90 thousand parameters whose first layer is dense, as the content of a ``config.json``."""
    experts = {
        "moe_intermediate_size": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "mlp_only_layers": [0],
    }
    return {"model_type": "qwen3_moe", "head_dim": 8, **_SIZES, **experts}


_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
