"""The anatomy of Qwen3-MoE names the same weights, shapes, roles and sharded dims as its module with real experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from archon_core import registry
from archon_core.models.anatomy import ExpertsAnatomy
from archon_engine.models.hf_config import load_hf_config
from archon_engine.options.archon import ArchonOptions
from archon_engine.parallel.tensor import SHARDED_DIM
from archon_models_qwen.tiny_config import tiny_qwen3_moe
from archon_moe.sharding import ETP_DIM

LARGE = json.loads((Path(__file__).parents[1] / "data/qwen3-30b-a3b.json").read_text())

CASES: dict[str, dict[str, Any]] = {
    "tiny": tiny_qwen3_moe(),
    "every second layer": {**tiny_qwen3_moe(), "mlp_only_layers": [], "decoder_sparse_step": 2},
    "tied, with windows": {
        **tiny_qwen3_moe(),
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 16,
    },
    "two layers of 30B-A3B": {**LARGE, "num_hidden_layers": 2},
}


@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_anatomy_is_that_of_the_module(case: str, critic: bool) -> None:
    entries, spec = CASES[case], registry().get("model", "qwen3_moe")
    loaded = spec.load()
    arguments = loaded.arguments.from_hf_config(load_hf_config(entries), critic=critic)
    with torch.device("meta"):
        module = loaded.build(arguments, experts=registry().get("moe", "moe").load()(ArchonOptions()))
    plan = loaded.parallel_plan(arguments)
    found = spec.load_part("anatomy")(entries, critic=critic)
    described = {weight.name: weight for weight in (*found.embed, *found.last)}
    for number, layer in enumerate(found.layers):
        described |= {f"layers.{number}.{weight.name}": weight for weight in layer.weights}
        assert (layer.experts is not None) == arguments.sparse[number]
        assert (layer.intermediate_size == 0) == arguments.sparse[number]
        assert layer.attention.window == arguments.windows[number]
        if layer.experts is not None:
            settings = arguments.moe
            assert layer.experts == ExpertsAnatomy(
                settings.n_experts, settings.top_k, settings.intermediate_size, settings.shared_intermediate_size
            )
    assert {name: weight.shape for name, weight in described.items()} == {
        name: tuple(parameter.shape) for name, parameter in module.named_parameters()
    }
    for name, weight in described.items():
        owner, _, attribute = name.rpartition(".")
        assert weight.role == plan.role_of(owner), name
        is_expert = weight.role == "expert"
        dim = ETP_DIM[attribute] if is_expert else SHARDED_DIM.get((weight.role, attribute))
        assert weight.tensor_dim == dim, name


def test_the_30b_a3b_has_its_published_size() -> None:
    found = registry().get("model", "qwen3_moe").load_part("anatomy")(LARGE)
    assert found.n_parameters == 30_532_122_624
    experts = found.kinds[0].experts
    assert experts is not None
    assert len(found.kinds) == 1
    idle = 48 * (experts.n_experts - experts.top_k) * 3 * 2048 * experts.intermediate_size
    assert (found.n_parameters - idle) // 10**8 == 33  # the model card has 30.5 billion, 3.3 of them active
    assert found.n_parameters // 10**8 == 305
