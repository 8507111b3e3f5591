"""Sizes for tests and for ``archon verify``."""

from __future__ import annotations

from typing import Any


def tiny_config() -> dict[str, Any]:
    """A Llama of some 30 thousand parameters, as the content of a ``config.json``.

    Its numbers are also what ``archon verify`` makes other families small with: most name their sizes alike.
    """
    return {
        "model_type": "llama",
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "num_local_experts": 8,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "tie_word_embeddings": False,
    }
