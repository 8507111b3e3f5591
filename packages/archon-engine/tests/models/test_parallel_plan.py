from __future__ import annotations

import pytest
from torch import nn

from archon_core.errors import ModelError
from archon_core.models.parallel_plan import ParallelPlan


def toy() -> nn.Module:
    module = nn.Module()
    module.embed = nn.Embedding(4, 2)
    module.layers = nn.ModuleDict({str(i): nn.ModuleDict({"up": nn.Linear(2, 2)}) for i in range(2)})
    module.norm = nn.LayerNorm(2)
    module.head = nn.Linear(2, 4)
    return module


ROLES = {"embed": "vocabulary", "layers.{layer}.up": "column", "norm": "sequence", "head": "vocabulary"}


def test_a_plan_that_covers_every_parameter_once_is_valid() -> None:
    plan = ParallelPlan(roles=ROLES, tensor_regions=("layers.{layer}",))
    plan.validate(toy())
    assert plan.role_of("layers.1.up") == "column"


def test_a_parameter_without_a_role_is_named() -> None:
    plan = ParallelPlan(roles={k: v for k, v in ROLES.items() if k != "layers.{layer}.up"})
    with pytest.raises(ModelError, match=r"layers\.0\.up\.weight, layers\.0\.up\.bias: 0 roles"):
        plan.validate(toy())
    with pytest.raises(ModelError, match=r"'layers\.0\.up'.*no pattern"):
        plan.role_of("layers.0.up")


def test_a_parameter_with_two_roles_is_named() -> None:
    plan = ParallelPlan(roles={**ROLES, "layers.1.up": "row"})
    with pytest.raises(ModelError, match=r"layers\.1\.up\.weight.*2 roles"):
        plan.validate(toy())
    with pytest.raises(ModelError, match="several"):
        plan.role_of("layers.1.up")


def test_a_pattern_that_matches_nothing_is_named() -> None:
    with pytest.raises(ModelError, match=r"'layers\.\{layer\}\.attention' matches no module"):
        ParallelPlan(roles=ROLES, attention=("layers.{layer}.attention",)).validate(toy())


def test_a_parameter_outside_the_pipeline_units_is_named() -> None:
    with pytest.raises(ModelError, match=r"norm\.weight.*in 0 pipeline units"):
        ParallelPlan(roles=ROLES, units=("embed", "layers.{layer}", "head")).validate(toy())


def test_a_placeholder_stands_for_one_segment_only() -> None:
    with pytest.raises(ModelError, match=r"layers\.0\.up\.weight"):
        ParallelPlan(roles={"embed": "vocabulary", "layers.{layer}": "column", "norm": "sequence"}).validate(toy())
