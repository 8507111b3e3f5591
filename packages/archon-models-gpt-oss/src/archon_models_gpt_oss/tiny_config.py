"""A configuration that is small enough for tests and for ``archon verify``."""

from __future__ import annotations

from typing import Any


def tiny_gpt_oss() -> dict[str, Any]:
    """A gpt-oss of some 130 thousand parameters, as the content of a ``config.json``.

    Its sizes are multiples of 32, so that its experts can be stored as MXFP4.
    """
    return {
        "model_type": "gpt_oss",
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "sliding_window": 6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 16.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 32,
        },
        "tie_word_embeddings": False,
    }
