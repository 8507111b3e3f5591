"""A large configuration in a small size still computes, and can be cut, in the same ways."""

import math

import pytest

from archon_testing.small_config import (
    LARGE,
    changes,
    deepen,
    estimated_parameters,
    shrink,
    smallest_with_same_divisors,
    with_layers,
)

TINY = {
    "model_type": "house",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
QWEN3_8B = {
    "model_type": "house",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "eos_token_id": 151645,
}


def test_an_8b_model_is_large_and_its_small_form_is_not():
    assert estimated_parameters(QWEN3_8B) == pytest.approx(8.2e9, rel=0.15)
    assert estimated_parameters(shrink(QWEN3_8B, TINY)) < LARGE / 100


def test_head_counts_and_options_stay_and_sizes_become_small():
    small = shrink(QWEN3_8B, TINY)
    kept = ("num_attention_heads", "num_key_value_heads", "tie_word_embeddings", "attention_bias", "rms_norm_eps")
    assert {name: small[name] for name in kept} == {name: QWEN3_8B[name] for name in kept}
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    assert [small[name] for name in sizes] == [128, 32, 48, 4, 8]
    assert "eos_token_id" not in small


@pytest.mark.parametrize("extent", [151936, 50257, 32001, 18944, 8960, 4864, 12288, 5000, 3 * 5 * 7 * 8, 13])
@pytest.mark.parametrize("least", [1, 48, 128])
def test_the_same_numbers_of_ranks_divide_a_small_size(extent, least):
    small = smallest_with_same_divisors(extent, least=least)
    assert [small % n == 0 for n in range(1, 9)] == [extent % n == 0 for n in range(1, 9)]
    assert small <= extent
    assert small < max(least, math.gcd(extent, 840)) + 840 or small == extent


def test_without_a_head_size_the_width_follows_the_heads():
    entries = {name: value for name, value in QWEN3_8B.items() if name != "head_dim"} | {"num_attention_heads": 28}
    assert shrink(entries, TINY)["hidden_size"] == 28 * 4


def test_windows_and_rotations_are_shorter_than_the_oracles_sequences():
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 64,
        "original_max_position_embeddings": 4096,
        "factor": 4.0,
    }
    entries = {**QWEN3_8B, "use_sliding_window": True, "sliding_window": 4096, "rope_parameters": rope}
    small = shrink({**entries, "max_window_layers": 30}, TINY)
    assert (small["sliding_window"], small["max_window_layers"]) == (8, 3)
    assert small["rope_parameters"] == {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "original_max_position_embeddings": 16,
        "factor": 4.0,
    }


def test_one_layer_of_every_kind_stays():
    kinds = ["sliding"] * 5 + ["full"] + ["sliding"] * 5 + ["linear"]
    found = with_layers({"num_hidden_layers": 12, "layer_types": kinds}, 2)
    assert found == {"num_hidden_layers": 3, "layer_types": ["sliding", "full", "linear"]}
    assert with_layers({"num_hidden_layers": 12, "layer_types": kinds[:6]}, 4)["layer_types"] == ["sliding"] * 3 + [
        "full"
    ]
    assert with_layers({"num_hidden_layers": 1}, 2) == {"num_hidden_layers": 1}


def test_a_deeper_model_repeats_the_kinds_of_its_layers():
    assert deepen(TINY, 8) == {**TINY, "num_hidden_layers": 8}
    assert deepen(TINY, 2) == TINY
    kinds = {"num_hidden_layers": 2, "layer_types": ["sliding", "full"]}
    assert deepen(kinds, 5) == {
        "num_hidden_layers": 5,
        "layer_types": ["sliding", "full", "sliding", "full", "sliding"],
    }


def test_changed_sizes_are_listed():
    assert changes({"hidden_size": 4096, "tie": True, "gone_token_id": 5}, {"hidden_size": 32, "tie": True}) == (
        "hidden_size 4096 -> 32",
    )


TINY_MOE = {**TINY, "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2, "mlp_only_layers": [0]}
QWEN3_30B = {
    **QWEN3_8B,
    "num_hidden_layers": 48,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


def test_experts_stay_divisible_and_routers_keep_a_choice():
    small = shrink(QWEN3_30B, TINY_MOE)
    assert (small["num_experts"], small["num_experts_per_tok"], small["moe_intermediate_size"]) == (8, 2, 24)
    assert small["mlp_only_layers"] == [], "all layers have experts, as in the large model"
    by_its_other_name = {("num_local_experts" if k == "num_experts" else k): v for k, v in QWEN3_30B.items()}
    assert shrink(by_its_other_name, TINY_MOE) == small
    assert estimated_parameters(by_its_other_name) == estimated_parameters(QWEN3_30B) > 1e10


@pytest.mark.parametrize(
    ("kinds", "kept", "expected"),
    [
        ({"mlp_only_layers": [0]}, 2, (1, [0])),
        ({"mlp_only_layers": [0, 1, 2]}, 2, (1, [0])),
        ({"mlp_only_layers": [40]}, 2, (1, [0])),
        ({"decoder_sparse_step": 4}, 2, (1, [0])),
        ({"decoder_sparse_step": 2}, 2, (2, [])),
        ({}, 2, (1, [])),
    ],
)
def test_of_dense_layers_and_layers_with_experts_a_small_model_has_both_if_the_large_one_has(kinds, kept, expected):
    small = with_layers({**QWEN3_30B, **kinds}, kept)
    assert (small["decoder_sparse_step"], small["mlp_only_layers"]) == expected


def test_latent_attention_and_groups_of_experts_keep_their_structure():
    tiny = {**TINY, "kv_lora_rank": 16, "n_routed_experts": 8, "first_k_dense_replace": 1, "num_experts_per_tok": 2}
    large = {
        **QWEN3_8B,
        "head_dim": None,
        "kv_lora_rank": 512,
        "n_routed_experts": 256,
        "n_group": 8,
        "first_k_dense_replace": 3,
        "num_experts_per_tok": 8,
    }
    small = shrink(large, tiny)
    assert small["hidden_size"] == 32, "it does not follow from the number of heads"
    assert small["n_routed_experts"] == 16, "a group has two experts"
    dense_of = {n_layers: with_layers(small, n_layers)["first_k_dense_replace"] for n_layers in (4, 2)}
    assert dense_of == {4: 3, 2: 1}, "a layer with experts is left"
