"""Names in a saved ``config.json`` that transformers 4 reads, held against the formulas of the papers."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from archon_engine.models.hf_config import config_file, load_hf_config
from archon_engine.models.rope_entries import older_rope_entries
from archon_engine.nn.rotary import RopeArguments

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
SIZES |= {"max_position_embeddings": 512, "intermediate_size": 48, "vocab_size": 64, "pad_token_id": None}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}


def saved(model_type: str, **entries: Any) -> dict[str, Any]:
    """The ``config.json`` of a model, as a reader that knows nothing of ``rope_parameters`` sees it."""
    config = load_hf_config({"model_type": model_type, **SIZES, **entries})
    content = json.loads(config_file(config, critic=False, dtype="bfloat16"))
    content.pop("rope_parameters", None)
    return content


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen3, an old file": ("qwen3", {"rope_theta": 1e6}, {"rope_theta": 1e6, "rope_scaling": None}),
    "qwen2": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4}}, {"rope_theta": 3e4}),
    "qwen3 with yarn": (
        "qwen3",
        {"rope_parameters": {**YARN, "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": YARN},
    ),
    "llama 3": (
        "llama",
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    ),
    "a class with scaling by default": (
        "apertus",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 7e4}},
        {"rope_theta": 7e4, "rope_scaling": None},
    ),
    "one set per kind of layer": (
        "gemma3_text",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
            }
        },
        {
            "rope_theta": 1e6,
            "rope_local_base_freq": 2e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "one base for two kinds of layers": (
        "olmo3",
        {
            "rope_parameters": {
                "full_attention": {**YARN, "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            }
        },
        {"rope_theta": 5e5, "rope_scaling": YARN},
    ),
    "names of one family": (
        "gpt_neox",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5}},
        {"rotary_emb_base": 3e4, "rotary_pct": 0.5},
    ),
    "a part of the head": (
        "stablelm",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5}},
        {"rope_theta": 3e4, "partial_rotary_factor": 0.5},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_older_names_say_what_rope_parameters_say(case: str, caplog: pytest.LogCaptureFixture) -> None:
    model_type, entries, expected = CASES[case]
    content = saved(model_type, **entries)
    assert {name: content[name] for name in expected} == expected
    assert "use this checkpoint with transformers 5" not in caplog.text


@pytest.mark.parametrize("factor", [None, 4.0])
def test_angles_from_older_names_are_those_of_the_formula_and_ours(factor: float | None) -> None:
    """RoFormer, eq. 15: position m turns pair i by m / base^(2i/d); linear scaling divides positions by its factor."""
    parameters = {"rope_type": "default", "rope_theta": 1e6}
    if factor is not None:
        parameters |= {"rope_type": "linear", "factor": factor}
    content = saved("qwen3", head_dim=8, rope_parameters=parameters)
    divisor = 1.0 if content["rope_scaling"] is None else content["rope_scaling"]["factor"]
    by_hand = [math.pow(content["rope_theta"], -2 * i / content["head_dim"]) / divisor for i in range(4)]
    config = load_hf_config({"model_type": "qwen3", **SIZES, "head_dim": 8, "rope_parameters": parameters})
    ours, scale = RopeArguments.from_hf_config(config, 8).frequencies()
    torch.testing.assert_close(ours, torch.tensor(by_hand), rtol=1e-6, atol=0)
    assert scale == 1.0


def test_what_older_versions_cannot_express_is_a_warning_that_names_it(caplog: pytest.LogCaptureFixture) -> None:
    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 4e5},
    }
    with caplog.at_level(logging.WARNING):
        assert saved("olmo3", rope_parameters=rope)["rope_theta"] == 5e5
    assert "sliding_attention.rope_theta" in caplog.text
    assert "use this checkpoint with transformers 5 or later" in caplog.text


def test_renamed_entries_and_the_type_have_their_older_names_too() -> None:
    content = saved("qwen3_moe", num_experts=6)
    assert content["num_experts"] == content["num_local_experts"] == 6
    assert content["dtype"] == content["torch_dtype"] == "bfloat16"


def test_a_saved_configuration_never_asks_for_code() -> None:
    content = saved("qwen3", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    assert "auto_map" not in content


def default_config(model_type: str) -> Any:
    try:
        return CONFIG_MAPPING[model_type]()
    except Exception:  # a class whose defaults its own validator refuses
        return None


TYPES = sorted(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING)


def test_transformers_reads_the_same_rotation_from_all_names_together_whatever_the_family() -> None:
    seen = 0
    for model_type in TYPES:
        config = default_config(model_type)
        if config is None or not getattr(config, "rope_parameters", None):
            continue
        entries = older_rope_entries(config)
        seen += bool(entries)
        again = type(config)(**{**config.to_dict(), **entries})
        assert again.rope_parameters == config.rope_parameters, model_type
    assert seen > 50
