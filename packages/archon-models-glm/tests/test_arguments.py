"""Arguments, weight map and anatomy without a module."""

from __future__ import annotations

from typing import Any

import pytest

from archon_core.contracts.moe import MoESettings
from archon_core.errors import ModelError
from archon_engine.models.hf_config import load_hf_config
from archon_models_glm.anatomy import anatomy
from archon_models_glm.arguments import GlmArguments
from archon_models_glm.tiny_config import tiny_glm4_moe

GLM_4_5_AIR: dict[str, Any] = {
    "model_type": "glm4_moe",
    "attention_bias": True,
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "max_position_embeddings": 131072,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 46,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
    "routed_scaling_factor": 1.0,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "use_qk_norm": False,
    "vocab_size": 151552,
}
"""The published configuration."""


def arguments(**changes: Any) -> GlmArguments:
    return GlmArguments.from_hf_config(load_hf_config({**tiny_glm4_moe(), **changes}), critic=False)


def test_settings_are_those_of_the_configuration() -> None:
    made = arguments(n_shared_experts=2, num_key_value_heads=2)
    assert made.moe == MoESettings(
        hidden_size=32,
        intermediate_size=16,
        n_experts=8,
        top_k=2,
        score="sigmoid",
        norm_topk_prob=True,
        scaling=1.5,
        n_groups=4,
        top_k_groups=2,
        choice_bias=True,
        shared_intermediate_size=32,
    )
    assert (made.n_dense_layers, made.n_kv_heads, made.qkv_bias, made.qk_norm) == (1, 2, True, True)
    assert (made.rope.rotated_dim, made.rope.interleaved) == (4, False)


def test_published_configurations_are_read() -> None:
    made = GlmArguments.from_hf_config(load_hf_config(GLM_4_5_AIR), critic=False)
    assert (made.rope.rotated_dim, made.head_dim, made.qk_norm) == (64, 128, False)


def test_layers_that_predict_further_tokens_are_left_out_by_a_decision() -> None:
    [decision] = arguments(num_nextn_predict_layers=1).decisions
    assert (decision.option, decision.requested, decision.effective) == ("num_nextn_predict_layers", "1", "0")
    assert arguments(num_nextn_predict_layers=0).decisions == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "glm4"}, "'glm4'; this decoder is for glm4_moe"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "the second must divide the first"),
        ({"first_k_dense_replace": 4}, "first_k_dense_replace 4 and num_hidden_layers 4; allowed are 0 to 3"),
        ({"n_routed_experts": 0}, "n_routed_experts: found 0"),
        ({"hidden_act": "sillu"}, "did you mean 'silu'"),
        ({"quantization_config": {"quant_method": "other"}}, "quantization_config"),
    ],
)
def test_what_the_decoder_cannot_do_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        arguments(**changes)


def test_critics_are_refused() -> None:
    with pytest.raises(ModelError, match="no class to save a glm4_moe critic with"):
        GlmArguments.from_hf_config(load_hf_config(tiny_glm4_moe()), critic=True)


def test_glm_4_5_air_has_its_published_size() -> None:
    found = anatomy(GLM_4_5_AIR)
    # 106 billion without the layer that predicts further tokens, 12 of them active.
    assert found.n_parameters // 10**9 == 106
    experts = found.layers[-1].experts
    assert experts is not None
    idle = 45 * (experts.n_experts - experts.top_k) * 3 * 4096 * experts.intermediate_size
    assert round((found.n_parameters - idle) / 10**9) == 13
