"""Arguments, weight map and anatomy without a module."""

from __future__ import annotations

from typing import Any

import pytest

from archon_core.contracts.moe import ClampedGate, MoESettings
from archon_core.errors import ModelError
from archon_engine.models.hf_config import load_hf_config
from archon_models_gpt_oss.anatomy import anatomy
from archon_models_gpt_oss.arguments import GptOssArguments
from archon_models_gpt_oss.tiny_config import tiny_gpt_oss
from archon_models_gpt_oss.weight_map import weight_map


def arguments(critic: bool = False, **changes: Any) -> GptOssArguments:
    return GptOssArguments.from_hf_config(load_hf_config({**tiny_gpt_oss(), **changes}), critic=critic)


def test_settings_are_those_of_the_configuration() -> None:
    made = arguments(swiglu_limit=5.0, num_experts_per_tok=3)
    assert made.moe == MoESettings(
        hidden_size=32,
        intermediate_size=32,
        n_experts=8,
        top_k=3,
        norm_topk_prob=True,
        expert_bias=True,
        router_bias=True,
        clamped_gate=ClampedGate(1.702, 5.0),
    )
    assert made.windows == (6, None, 6, None)
    assert (made.rope.kind, made.rope.reach) == ("yarn", 512)
    assert made.decisions == ()


def test_layer_types_choose_the_windows() -> None:
    kinds = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    assert arguments(layer_types=kinds, sliding_window=9).windows == (None, None, 9, None)


def test_gpt_oss_20b_and_120b_have_their_published_sizes() -> None:
    # 20.9 and 116.8 billion parameters, 3.6 and 5.1 of them active (arXiv:2508.10925, table 1, which leaves the
    # embedding out of the active ones).
    for layers, n_experts, size, n_active in ((24, 32, 20.9, 3.6), (36, 128, 116.8, 5.1)):
        found = anatomy({"model_type": "gpt_oss", "num_hidden_layers": layers, "num_local_experts": n_experts})
        assert round(found.n_parameters / 1e9, 1) == size
        of_expert = sum(w.size for w in found.layers[0].weights if w.role == "expert") // n_experts
        idle = layers * (n_experts - 4) * of_expert
        embedding = sum(weight.size for weight in found.embed)
        assert round((found.n_parameters - idle - embedding) / 1e9, 1) == n_active


@pytest.mark.parametrize("critic", [False, True])
def test_the_weight_map_covers_every_weight_in_both_forms(critic: bool) -> None:
    found = anatomy(tiny_gpt_oss(), critic=critic)
    shapes = {weight.name: weight.shape for weight in (*found.embed, *found.last)}
    for number, layer in enumerate(found.layers):
        shapes |= {f"layers.{number}.{weight.name}": weight.shape for weight in layer.weights}
    weights = weight_map(arguments(critic)).resolve(shapes)
    experts = "model.layers.1.mlp.experts"
    assert weights.hf_shapes[f"{experts}.gate_up_proj"] == (8, 32, 64)
    [quantised] = weights.alternatives
    assert quantised.stored_shapes[f"{experts}.gate_up_proj_blocks"] == (8, 64, 1, 16)
    assert quantised.stored_shapes[f"{experts}.down_proj_scales"] == (8, 32, 1)
    assert quantised.stored_shapes[f"{experts}.gate_up_proj_bias"] == (8, 64)


def test_experts_that_blocks_do_not_fit_are_read_from_plain_files_alone() -> None:
    assert weight_map(arguments(intermediate_size=24)).alternatives == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "'llama'; this decoder is for gpt_oss"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "the second must divide the first"),
        ({"num_experts_per_tok": 9}, "num_local_experts 8 and num_experts_per_tok 9"),
        ({"num_local_experts": 0}, "num_local_experts: found 0"),
        ({"hidden_act": "gelu"}, "the clamped gate of gpt-oss needs silu"),
        ({"layer_types": ["full_attention"] * 3 + ["chunked_attention"]}, "found layer_types chunked_attention"),
        ({"sliding_window": None}, "no sliding_window"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quant_method 'fp8'; allowed are mxfp4"),
        ({"n_shared_experts": 1}, "n_shared_experts = 1"),
    ],
)
def test_what_the_decoder_cannot_do_is_refused(changes: dict[str, Any], message: str) -> None:
    if "model_type" in changes:
        config = load_hf_config(changes)
        with pytest.raises(ModelError, match=message):
            GptOssArguments.from_hf_config(config, critic=False)
        return
    with pytest.raises(ModelError, match=message):
        arguments(**changes)
