"""The anatomy read from a ``config.json`` names the same weights, shapes, roles and sharded dims as the module."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from archon_core.errors import ModelError
from archon_core.models.parallel_plan import HeadCounts
from archon_engine.models.hf_config import load_hf_config
from archon_engine.parallel.tensor import SHARDED_DIM
from archon_models_hf.anatomy import FAMILIES, anatomy
from archon_models_hf.arguments import HfArguments
from archon_models_hf.decoder import HfDecoder
from archon_models_hf.parallel_plan import parallel_plan

SIZES: dict[str, Any] = {
    "vocab_size": 103,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
CASES: dict[str, dict[str, Any]] = {
    **{family: {"model_type": family} for family in FAMILIES},
    "llama biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "head_dim": 6},
    "llama, all key heads": {"model_type": "llama", "num_key_value_heads": None},
    "mistral without windows": {"model_type": "mistral", "sliding_window": None, "head_dim": 10},
    "phi3 with windows": {"model_type": "phi3", "sliding_window": 9},
    "gemma2 untied": {"model_type": "gemma2", "tie_word_embeddings": False, "head_dim": 8, "sliding_window": 7},
    "gemma3 pattern": {"model_type": "gemma3_text", "sliding_window": 7, "sliding_window_pattern": 2, "head_dim": 8},
    "olmo3 by layer": {"model_type": "olmo3", "layer_types": ["full_attention", "sliding_attention"] * 2},
    "smollm3 with windows": {"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 5},
    "smollm3 by rotation": {
        "model_type": "smollm3",
        "use_sliding_window": True,
        "sliding_window": 5,
        "no_rope_layers": [1, 0, 0, 1],
        "attention_bias": True,
    },
    "qwen2 with windows": {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 2},
    "qwen3 biased": {"model_type": "qwen3", "attention_bias": True, "tie_word_embeddings": True},
}


def check(entries: dict[str, Any], *, critic: bool = False) -> None:
    arguments = HfArguments.from_hf_config(load_hf_config(entries), critic=critic)
    with torch.device("meta"):
        module = HfDecoder(arguments)
    plan = parallel_plan(arguments)
    found = anatomy(entries, critic=critic)
    described = {weight.name: weight for weight in (*found.embed, *found.last)}
    for number, layer in enumerate(found.layers):
        described |= {f"layers.{number}.{weight.name}": weight for weight in layer.weights}
        facts = arguments.facts.attention[number]
        assert layer.attention.window == facts.settings.window
        assert layer.attention.heads == HeadCounts(facts.n_heads, facts.n_kv_heads)
        assert layer.attention.head_dim == facts.head_dim
    assert {name: weight.shape for name, weight in described.items()} == {
        name: tuple(parameter.shape) for name, parameter in module.named_parameters()
    }
    for name, weight in described.items():
        owner, _, attribute = name.rpartition(".")
        assert weight.role == plan.role_of(owner), name
        assert weight.tensor_dim == SHARDED_DIM.get((weight.role, attribute)), name
    assert found.n_parameters == sum(parameter.numel() for parameter in module.parameters())
    assert found.tied == (arguments.facts.tied and not critic)


@pytest.mark.parametrize("case", CASES)
def test_the_anatomy_is_that_of_the_module(case: str) -> None:
    check({**SIZES, **CASES[case]})


def test_a_critic_has_a_value_head() -> None:
    check({**SIZES, "model_type": "llama"}, critic=True)
    check({**SIZES, "model_type": "gemma2", "head_dim": 8}, critic=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_entries_have_the_defaults_of_transformers(family: str) -> None:
    entries = {"model_type": family, "hidden_size": 64, "num_attention_heads": 32, "num_hidden_layers": 8}
    own = load_hf_config(entries)
    given = {name: getattr(own, name) for name in ("vocab_size", "intermediate_size", "num_hidden_layers")}
    found = anatomy({**entries, **given})
    assert found.tied == own.tie_word_embeddings
    assert found.layers[0].attention.heads.key_value == own.num_key_value_heads
    assert found.layers[0].attention.head_dim == getattr(own, "head_dim", 2)
    kinds = getattr(own, "layer_types", None) or ["sliding_attention"] * 8
    size = getattr(own, "sliding_window", None)
    windows = [size if kind == "sliding_attention" else None for kind in kinds]
    assert [layer.attention.window for layer in found.layers] == windows


def test_a_family_without_a_description_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'mixtral': found no description of this family; .* describes gemma, .*plan"):
        anatomy({**SIZES, "model_type": "mixtral"})


def test_a_missing_size_is_named() -> None:
    with pytest.raises(ModelError, match="llama configuration: hidden_size: found None; allowed are integers from 1"):
        anatomy({"model_type": "llama"})
