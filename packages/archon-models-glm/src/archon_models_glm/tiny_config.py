"""A configuration that is small enough for tests and for ``archon verify``."""

from __future__ import annotations

from typing import Any


def tiny_glm4_moe() -> dict[str, Any]:
    """A GLM-4 of some 90 thousand parameters whose first layer is dense, as the content of a ``config.json``."""
    return {
        "model_type": "glm4_moe",
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "attention_bias": True,
        "use_qk_norm": True,
        "partial_rotary_factor": 0.5,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "num_nextn_predict_layers": 1,
    }
