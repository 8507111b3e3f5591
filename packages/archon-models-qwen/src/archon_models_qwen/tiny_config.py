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


def tiny_qwen3_5() -> dict[str, Any]:
    """A Qwen3.5 of some 150 thousand parameters, as the content of a ``config.json``."""
    return {"model_type": "qwen3_5_text", **_SIZES, **_HYBRID}


def tiny_qwen3_5_moe() -> dict[str, Any]:
    """A Qwen3.5-MoE of some 190 thousand parameters, as the content of a ``config.json``."""
    experts = {
        "moe_intermediate_size": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "shared_expert_intermediate_size": 24,
    }
    sizes = {name: size for name, size in _SIZES.items() if name != "intermediate_size"}
    return {"model_type": "qwen3_5_moe_text", **sizes, **_HYBRID, **experts}


_HYBRID: dict[str, Any] = {
    "head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    # Larger than published: outputs of heads this small often cancel, and the norm behind them would amplify fp32
    # rounding far beyond that of a large model. With 1e-3 and heads of 8, rounding the outputs of all modules to fp32
    # changes gradients of three such layers by up to 6e-5, even if everything inside is computed in float64.
    "rms_norm_eps": 1e-2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
}

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
