"""The parts of a planned engine are those that the engine would be assembled from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from archon_core.contracts.pipeline import PIPELINE, PipelineSpec, ScheduleSpec
from archon_core.models.parallel_plan import ParallelPlan
from archon_core.plugins import registry
from archon_engine.assembly import stages
from archon_engine.models.hf_config import load_hf_config
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_engine.parallel.plan_checks import sharded_extents as extents_of_module
from archon_pipeline.program import forward_actions as forward_actions_of_runner
from archon_plan.extents import sharded_extents
from archon_plan.models import read_anatomy
from archon_plan.parts import forward_actions, plan_stages, schedule_actions

MODELS = ("qwen2", "qwen3", "qwen3_moe")


def entries_of(name: str, **changes: Any) -> dict[str, Any]:
    spec = registry().model_for(name)
    return {**spec.load_part("tiny_config")(), "num_hidden_layers": 7, **changes}


def on_meta(entries: dict[str, Any], *, critic: bool) -> tuple[nn.Module, ParallelPlan]:
    model = registry().model_for(entries["model_type"]).load()
    arguments = model.arguments.from_hf_config(load_hf_config(entries), critic=critic)
    experts = None
    if model.has_experts:
        experts = registry().get("moe", "moe").load()(ArchonEngineConfig().archon)
    with torch.device("meta"):
        return model.build(arguments, experts=experts), model.parallel_plan(arguments)


@pytest.mark.parametrize("critic", [False, True], ids=["policy", "critic"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", MODELS)
def test_stages_and_extents_are_those_of_the_module(name: str, tied: bool, critic: bool) -> None:
    entries = entries_of(name, tie_word_embeddings=tied)
    whole, parallel = on_meta(entries, critic=critic)
    anatomy = read_anatomy(registry().model_for(name), entries, critic=critic)
    pipeline = registry().get(PipelineSpec, PIPELINE)
    for schedule in registry().all(ScheduleSpec):
        for n_ranks in (2, 4) if schedule.usual_stages_per_rank == 1 else (2,):
            options = ArchonOptions()
            planned = plan_stages(anatomy, pipeline, schedule, n_ranks=n_ranks, options=options)
            assert planned == stages.plan_stages(
                whole, parallel, n_ranks=n_ranks, schedule=schedule, pipeline=pipeline, options=options, role="actor"
            )
    ours, theirs = sharded_extents(anatomy), extents_of_module(whole, parallel)
    assert ours.query_heads == theirs.query_heads
    assert set(ours.by_tensor_ranks.values()) == set(theirs.by_tensor_ranks.values())
    assert set(ours.unequal.values()) == set(theirs.unequal.values())


def test_shorter_first_and_last_stages_reach_the_split() -> None:
    entries = entries_of("qwen3", num_hidden_layers=10)
    anatomy = read_anatomy(registry().model_for("qwen3"), entries)
    options = ArchonOptions(pp_first_stage_less_layers=2, pp_last_stage_less_layers=2)
    schedule = registry().get(ScheduleSpec, "1F1B")
    planned = plan_stages(anatomy, registry().get(PipelineSpec, PIPELINE), schedule, n_ranks=2, options=options)
    assert [len(stage.layers) for stage in planned.stages] == [5, 5]
    longer = ArchonOptions(pp_first_stage_less_layers=2, pp_last_stage_less_layers=0)
    planned = plan_stages(anatomy, registry().get(PipelineSpec, PIPELINE), schedule, n_ranks=2, options=longer)
    assert [len(stage.layers) for stage in planned.stages] == [4, 6]


@pytest.mark.parametrize("schedule", ["1F1B", "Interleaved1F1B", "ZBVZeroBubble"])
def test_forward_passes_alone_run_in_the_order_of_the_runner(schedule: str) -> None:
    spec = registry().get(ScheduleSpec, schedule)
    anatomy = read_anatomy(registry().model_for("qwen3"), entries_of("qwen3"))
    plan = plan_stages(anatomy, registry().get(PipelineSpec, PIPELINE), spec, n_ranks=2, options=ArchonOptions())
    assert forward_actions(plan, 2, 5) == forward_actions_of_runner(plan, 2, 5)
    assert schedule_actions(spec, plan, 2, 6) == spec.load()(2, len(plan), 6)
