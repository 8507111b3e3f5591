"""The anatomy read from a ``config.json`` names the same weights, shapes, roles and sharded dims as the module."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from archon_core.errors import ModelError
from archon_core.models.parallel_plan import HeadCounts
from archon_engine.models.hf_config import load_hf_config
from archon_engine.parallel.tensor import SHARDED_DIM
from archon_models_qwen.anatomy import anatomy
from archon_models_qwen.plugin import archon_models
from archon_models_qwen.tiny_config import tiny_qwen2, tiny_qwen3

SPECS = {spec.name: spec for spec in archon_models()}

DENSE = {
    "qwen2": tiny_qwen2(),
    "qwen3": tiny_qwen3(),
    "tied": {**tiny_qwen3(), "tie_word_embeddings": True},
    "biased": {**tiny_qwen3(), "attention_bias": True},
    "windows": {**tiny_qwen2(), "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    "without head_dim": {name: value for name, value in tiny_qwen3().items() if name != "head_dim"},
}


@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize("entries", DENSE.values(), ids=DENSE)
def test_the_anatomy_is_that_of_the_module(entries: dict[str, Any], critic: bool) -> None:
    loaded = SPECS[entries["model_type"]].load()
    arguments = loaded.arguments.from_hf_config(load_hf_config(entries), critic=critic)
    with torch.device("meta"):
        module = loaded.build(arguments)
    plan = loaded.parallel_plan(arguments)
    found = anatomy(entries, critic=critic)
    described = {weight.name: weight for weight in (*found.embed, *found.last)}
    for number, layer in enumerate(found.layers):
        described |= {f"layers.{number}.{weight.name}": weight for weight in layer.weights}
    real = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert {name: weight.shape for name, weight in described.items()} == real
    for name, weight in described.items():
        owner, _, attribute = name.rpartition(".")
        assert weight.role == plan.role_of(owner), name
        assert weight.tensor_dim == SHARDED_DIM.get((weight.role, attribute)), name
    assert found.n_parameters == sum(parameter.numel() for parameter in module.parameters())
    assert found.tied == arguments.tied
    assert [layer.attention.window for layer in found.layers] == list(arguments.windows)
    assert {layer.attention.head_dim for layer in found.layers} == {arguments.head_dim}
    assert found.layers[0].attention.heads == HeadCounts(arguments.n_heads, arguments.n_kv_heads)


def test_a_missing_size_is_named() -> None:
    entries = {name: value for name, value in tiny_qwen3().items() if name != "hidden_size"}
    with pytest.raises(ModelError, match="hidden_size: found None; allowed are integers from 1"):
        anatomy(entries)
