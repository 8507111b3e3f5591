"""Arguments and anatomy without a module."""

from __future__ import annotations

import math
from typing import Any

import pytest

from archon_core.errors import ModelError
from archon_engine.models.hf_config import load_hf_config
from archon_engine.nn.latent_attention import LatentSizes, latent_scale
from archon_models_deepseek.anatomy import anatomy
from archon_models_deepseek.arguments import DeepseekArguments
from archon_models_deepseek.tiny_config import tiny_deepseek_v3

DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "aux_loss_alpha": 0.001,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
"""The published configuration."""


def arguments(**changes: Any) -> DeepseekArguments:
    return DeepseekArguments.from_hf_config(load_hf_config({**tiny_deepseek_v3(), **changes}), critic=False)


def test_the_published_configuration_is_read() -> None:
    made = DeepseekArguments.from_hf_config(load_hf_config(DEEPSEEK_V3), critic=False)
    assert made.attention == LatentSizes(7168, 128, 1536, 512, 128, 64, 128)
    assert (made.head_dim, made.rope.rotated_dim, made.rope.interleaved) == (192, 64, True)
    assert (made.moe.n_groups, made.moe.top_k_groups, made.moe.scaling, made.moe.choice_bias) == (8, 4, 2.5, True)
    assert made.attention_scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)


def test_scores_are_scaled_only_where_rotations_are() -> None:
    scaled = {"rope_type": "yarn", "factor": 4.0, "mscale_all_dim": 0.8}
    assert latent_scale(16, scaled) == pytest.approx(0.25 * (0.08 * math.log(4) + 1) ** 2)
    for parameters in ({**scaled, "rope_type": "default"}, {**scaled, "factor": 1.0}, {**scaled, "mscale_all_dim": 0}):
        assert latent_scale(16, parameters) == 0.25


def test_layers_that_predict_further_tokens_are_left_out_by_a_decision() -> None:
    [decision] = arguments(num_nextn_predict_layers=2).decisions
    assert (decision.option, decision.requested, decision.effective) == ("num_nextn_predict_layers", "2", "0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "'llama'; this decoder is for deepseek_v3"),
        ({"num_key_value_heads": 4}, "latent attention makes keys and values for every head"),
        ({"first_k_dense_replace": 4}, "first_k_dense_replace 4 and num_hidden_layers 4; allowed are 0 to 3"),
        ({"kv_lora_rank": 0}, "kv_lora_rank: found 0"),
        ({"scoring_func": "softmax"}, "scoring_func: found 'softmax'; allowed is 'sigmoid'"),
        ({"topk_method": "greedy"}, "topk_method: found 'greedy'; allowed is 'noaux_tc'"),
        ({"qk_rope_head_dim": 3}, "rotation needs an even one"),
        ({"quantization_config": {"quant_method": "other"}}, "quantization_config"),
    ],
)
def test_what_the_decoder_cannot_do_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        arguments(**changes)


def test_deepseek_v3_has_its_published_size() -> None:
    found = anatomy(DEEPSEEK_V3)
    experts = found.layers[-1].experts
    assert experts is not None
    # 671 billion without the layer that predicts further tokens, 37 of them active.
    assert found.n_parameters // 10**9 == 671
    idle = 58 * (experts.n_experts - experts.top_k) * 3 * 7168 * experts.intermediate_size
    assert (found.n_parameters - idle) // 10**9 == 37
