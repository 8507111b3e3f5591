"""Arguments and parallel plan of the dense families."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from archon_core.errors import ModelError
from archon_engine.models.hf_config import load_hf_config
from archon_models_qwen.arguments import QwenArguments
from archon_models_qwen.decoder import QwenDecoder
from archon_models_qwen.parallel_plan import parallel_plan
from archon_models_qwen.tiny_config import tiny_qwen2, tiny_qwen3


def arguments(entries: dict[str, Any], *, critic: bool = False) -> QwenArguments:
    return QwenArguments.from_hf_config(load_hf_config(entries), critic=critic)


def test_the_families_differ_in_biases_and_head_norms() -> None:
    qwen2, qwen3 = arguments(tiny_qwen2()), arguments({**tiny_qwen3(), "attention_bias": True})
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.qk_norm) == (True, False, False)
    assert (qwen3.qkv_bias, qwen3.output_bias, qwen3.qk_norm) == (True, True, True)


def test_windows_follow_the_layer_types() -> None:
    entries = {**tiny_qwen3(), "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3}
    assert arguments(entries).windows == (None, None, None, 7)
    assert arguments(tiny_qwen3()).windows == (None,) * 4


def test_a_window_that_is_switched_off_is_not_applied() -> None:
    entries = {**tiny_qwen3(), "use_sliding_window": False, "sliding_window": 7, "max_window_layers": 0}
    assert arguments(entries).windows == (None,) * 4


def test_dropout_of_the_configuration_is_handed_on_for_the_engine_to_judge() -> None:
    assert arguments({**tiny_qwen3(), "attention_dropout": 0.1}).attention_dropout == 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "the second must divide the first"),
        ({"hidden_act": "sillu"}, "did you mean 'silu'"),
        ({"layer_types": ["full_attention"] * 3 + ["chunked_attention"]}, "found layer_types chunked_attention"),
        ({"layer_types": ["sliding_attention"] * 4}, "set use_sliding_window and sliding_window"),
        ({"use_mrope": True}, "use_mrope = True"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"is_causal": False}, "is_causal"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.25}}, "partial_rotary"),
    ],
)
def test_what_the_decoder_cannot_do_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        arguments({**tiny_qwen3(), **changes})


def test_another_architecture_is_refused() -> None:
    with pytest.raises(ModelError, match="'llama'; this decoder is for qwen2 and qwen3"):
        arguments({"model_type": "llama"})


@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize(
    "entries",
    [
        tiny_qwen2(),
        tiny_qwen3(),
        {**tiny_qwen3(), "attention_bias": True},
        {**tiny_qwen2(), "tie_word_embeddings": True},
    ],
    ids=["qwen2", "qwen3", "qwen3-bias", "qwen2-tied"],
)
def test_the_parallel_plan_gives_every_parameter_one_role(entries: dict[str, Any], critic: bool) -> None:
    made = arguments(entries, critic=critic)
    with torch.device("meta"):
        module = QwenDecoder(made)
    plan = parallel_plan(made)
    plan.validate(module)
    assert plan.role_of("head") == ("sequence" if critic else "vocabulary")
    assert (plan.heads.query, plan.heads.key_value) == (8, 4)


@pytest.mark.parametrize("entries", [tiny_qwen2(), tiny_qwen3()], ids=["qwen2", "qwen3"])
def test_tiny_configurations_are_small(entries: dict[str, Any]) -> None:
    with torch.device("meta"):
        module = QwenDecoder(arguments(entries))
    assert sum(parameter.numel() for parameter in module.parameters()) < 100_000


@pytest.mark.parametrize("name", ["hidden_size", "intermediate_size", "vocab_size", "head_dim", "num_attention_heads"])
@pytest.mark.parametrize("size", [0, -1])
def test_sizes_below_one_are_refused_by_name(name: str, size: int) -> None:
    with pytest.raises(ModelError, match=f"{name}: found {size}; allowed are numbers from 1"):
        arguments({**tiny_qwen3(), name: size})
