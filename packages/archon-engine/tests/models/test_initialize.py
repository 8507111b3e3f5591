from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from archon_engine.models.initialize import draw_weight, initialize_weights, materialize_empty
from archon_engine.models.parameter_names import global_name, named_weights, weight_shapes
from archon_engine.nn.embedding import Embedding
from archon_engine.nn.linear import Linear
from archon_engine.nn.norm import RMSNorm


class Toy(nn.Module):
    def __init__(self, *, tied: bool = False, with_embed: bool = True) -> None:
        super().__init__()
        self.embed = Embedding(64, 32) if with_embed else None
        self.layers = nn.ModuleDict({"3": Linear(32, 32, bias=True)})
        self.norm = RMSNorm(32, 1e-6)
        self.head = Linear(32, 64)
        if tied and self.embed is not None:
            self.head.weight = self.embed.weight


def initialised(dtype: torch.dtype = torch.float32, seed: int = 7, **options: bool) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        module = Toy(**options).to(dtype)
    materialize_empty(module, "cpu")
    initialize_weights(module, seed, std=0.02)
    return {name: weight.detach() for name, weight in named_weights(module).items()}


def test_buffers_go_where_the_module_runs_when_parameters_are_kept_elsewhere() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    materialize_empty(module, "cpu", buffer_device="meta")
    assert {parameter.device.type for parameter in module.parameters()} == {"cpu"}
    assert {buffer.device.type for buffer in module.buffers()} == {"meta"}
    materialize_empty(module, "cpu")
    assert {buffer.device.type for buffer in module.buffers()} == {"cpu"}


def test_matrices_are_normal_norms_one_and_biases_zero() -> None:
    weights = initialised()
    assert weights["embed.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert abs(weights["embed.weight"].mean().item()) < 0.002
    assert bool((weights["norm.weight"] == 1).all())
    assert bool((weights["layers.3.bias"] == 0).all())


def test_a_draw_depends_on_seed_and_name_and_not_on_what_else_is_in_the_module() -> None:
    whole, stage, other = initialised(), initialised(with_embed=False), initialised(seed=8)
    assert torch.equal(whole["layers.3.weight"], stage["layers.3.weight"])
    assert not torch.equal(whole["layers.3.weight"], other["layers.3.weight"])
    assert not torch.equal(whole["embed.weight"], whole["head.weight"])


def test_a_draw_does_not_depend_on_the_type_it_is_stored_in() -> None:
    single, double = initialised(), initialised(torch.float64)
    assert torch.equal(single["head.weight"].double(), double["head.weight"])


def test_drawing_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draw_weight("w", (4, 4), "normal", 1, 0.02)
    assert torch.equal(torch.rand(3), expected)


def test_only_the_named_parameters_are_filled() -> None:
    module = Toy()
    before = module.head.weight.detach().fill_(5).clone()
    initialize_weights(module, 1, 0.02, only={"embed.weight"})
    assert torch.equal(module.head.weight, before)
    assert torch.equal(module.embed.weight, draw_weight("embed.weight", (64, 32), "normal", 1, 0.02))


def test_a_lone_copy_of_a_tied_parameter_starts_as_its_original() -> None:
    stage = Toy(with_embed=False)
    initialize_weights(stage, 1, 0.02, ties={"head.weight": "embed.weight"})
    assert torch.equal(stage.head.weight, draw_weight("embed.weight", (64, 32), "normal", 1, 0.02))


def test_a_module_can_declare_another_start() -> None:
    class ZeroCentredNorm(RMSNorm):
        initial_values: ClassVar = {"weight": "zeros"}

    module = ZeroCentredNorm(4, 1e-6)
    initialize_weights(module, 1, 0.02)
    assert bool((module.weight == 0).all())


def test_parameters_that_are_tied_stay_tied_when_a_meta_module_gets_storage() -> None:
    with torch.device("meta"):
        module = Toy(tied=True)
    materialize_empty(module, "cpu")
    assert module.head.weight is module.embed.weight
    assert module.head.weight.device.type == "cpu"


class Constants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.ones(3), persistent=False)

    def fill_buffers(self) -> None:
        self.frequencies.fill_(2.0)


def test_constants_in_buffers_are_written_anew_when_a_module_gets_storage() -> None:
    with torch.device("meta"):
        module = nn.ModuleDict({"inner": Constants()})
    materialize_empty(module, "cpu")
    assert module["inner"].frequencies.tolist() == [2.0, 2.0, 2.0]


def test_names_are_those_of_the_bare_module_whatever_wraps_it() -> None:
    assert global_name("layers.0._checkpoint_wrapped_module._orig_mod.attention.weight") == "layers.0.attention.weight"
    compiled = Toy()
    compiled.layers["3"] = torch.compile(compiled.layers["3"])
    assert weight_shapes(compiled) == weight_shapes(Toy())
