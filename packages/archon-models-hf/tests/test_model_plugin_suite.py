"""What every model package must keep: for a family with q and k projections, and for one with biases, means in norms,
fused projections and other names. ``hatch run test-families`` verifies more families on more layouts."""

from __future__ import annotations

from typing import Any, ClassVar

from archon_testing import ModelPluginSuite


class TestLlama(ModelPluginSuite):
    model = "hf"
    layouts = ("t2",)


class TestGptNeoX(ModelPluginSuite):
    model = "hf"
    config: ClassVar[dict[str, Any]] = {
        "model_type": "gpt_neox",
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    layouts = ("d2",)
