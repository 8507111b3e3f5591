"""What every model package must keep, for families of which Archon has no module of its own."""

from __future__ import annotations

from typing import Any

from archon_testing import ModelPluginSuite

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


class TestLlama(ModelPluginSuite):
    model = "hf"


class TestGemma2(ModelPluginSuite):
    model = "hf"
    config = {**SIZES, "model_type": "gemma2", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 7}
    layouts = ("c2",)


class TestGptNeoX(ModelPluginSuite):
    model = "hf"
    config = {**SIZES, "model_type": "gpt_neox"}
    layouts = ("t2",)
