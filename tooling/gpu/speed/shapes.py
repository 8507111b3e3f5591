"""The models and sizes of the speed checks: real shapes on a GPU, toys on the CPU so that the code runs there too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

QWEN3_1_7B: Mapping[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
}
QWEN3_30B_A3B: Mapping[str, Any] = {
    "model_type": "qwen3_moe",
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": False,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
}
TOY: Mapping[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
}
TOY_EXPERTS: Mapping[str, Any] = {
    "tie_word_embeddings": False,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}


@dataclass(frozen=True)
class Workload:
    """What one optimizer step trains on.

    Attributes:
        sequences: how many.
        length: tokens of each.
    """

    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.length


def dense(device: str) -> tuple[Mapping[str, Any], Workload]:
    """A dense model with 16 thousand tokens per step."""
    if device == "cuda":
        return QWEN3_1_7B, Workload(4, 4096)
    return {"model_type": "qwen3", "tie_word_embeddings": True, **TOY}, Workload(2, 64)


def experts(device: str, free_bytes: int) -> tuple[Mapping[str, Any], Workload]:
    """As many layers of a model with experts as fit into ``free_bytes``."""
    if device == "cuda":
        return {**QWEN3_30B_A3B, "num_hidden_layers": layers_that_fit(QWEN3_30B_A3B, free_bytes)}, Workload(4, 4096)
    return {"model_type": "qwen3_moe", **TOY, **TOY_EXPERTS}, Workload(2, 64)


BYTES_PER_PARAMETER = 18
"""fp32 weight, gradient and two moments, and the bf16 copy that is computed with."""

RESERVED_BYTES = 16e9
"""For the fused head's chunks, the temporaries of one layer (rows of 16 thousand tokens at 8 experts each are 0.5 GB),
and the allocator's gaps."""

ACTIVATION_BYTES = 1.5e9
"""That a layer with experts keeps of 16 thousand tokens: gates and ups of 8 experts, 0.2 GB each, and hidden states."""

MOST_LAYERS = 8
"""More would not change the share of time that a layer takes, and cost start-up time."""


def layers_that_fit(config: Mapping[str, Any], free_bytes: int) -> int:
    """Layers whose training state and activations fit beside embedding, head and what is reserved; at least one."""
    h, f, heads = config["hidden_size"], config["moe_intermediate_size"], config["num_attention_heads"]
    projections = 2 * h * config["head_dim"] * (heads + config["num_key_value_heads"])
    per_layer = projections + 3 * h * f * config["num_experts"] + h * config["num_experts"]
    left = free_bytes - RESERVED_BYTES - BYTES_PER_PARAMETER * 2 * h * config["vocab_size"]
    return max(1, min(MOST_LAYERS, int(left // (BYTES_PER_PARAMETER * per_layer + ACTIVATION_BYTES))))
