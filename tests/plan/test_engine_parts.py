"""A planned engine has the parts from which the real one would be assembled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import MicroBatchSpec
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.pipeline import PIPELINE, PipelineSpec, ScheduleSpec
from archon_core.models.parallel_plan import ParallelPlan
from archon_core.plugins import registry
from archon_engine.assembly import stages
from archon_engine.models.hf_config import load_hf_config
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_engine.parallel.plan_checks import sharded_extents as extents_of_module
from archon_engine.step.splitting import PipelineNeeds, Splitter
from archon_pipeline.program import forward_actions as forward_actions_of_runner
from archon_plan.constraints import check_engine
from archon_plan.engine_plan import plan_engine
from archon_plan.extents import sharded_extents
from archon_plan.models import NamedModel, read_anatomy
from archon_plan.parts import EngineRequest, Sequences, forward_actions, plan_stages, schedule_actions

MODELS = ("qwen2", "qwen3", "qwen3_moe", "qwen3_5")


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


@pytest.mark.parametrize("layout", ["archon:d2t2", "archon:p2d2", "archon:p2c2"])
@pytest.mark.parametrize(("number", "limit", "divisor"), [(24, 100, 1), (24, None, 3), (3, 64, 1), (40, 64, 5)])
def test_micro_batches_are_those_that_the_engine_splits_a_batch_into(
    layout: str, number: int, limit: int | None, divisor: int
) -> None:
    spec = MicroBatchSpec(n_mbs=2, max_tokens_per_mb=limit, n_mbs_divisor=divisor)
    config = ArchonEngineConfig(mb_spec=spec, batch_align_to=3, archon=ArchonOptions(pp_schedule="1F1B"))
    model = NamedModel("tiny", entries_of("qwen3", num_hidden_layers=4), "tiny")
    request = EngineRequest("actor", layout, model, config, Sequences(number, 21))
    planned = plan_engine(request, check_engine(request, registry()))
    dims = planned.setting.dims
    pipeline = PipelineNeeds(len(planned.setting.stage_plan)) if dims.pp > 1 else None
    splitter = Splitter(spec, multiple=planned.effective.pad_multiple, pipeline=pipeline)
    on_rank = -(-number // dims.dp_shard)
    batch = Batch(torch.zeros(21 * on_rank, dtype=torch.long), (21,) * on_rank)
    split = splitter.plan(batch)
    built = splitter.build(batch, split, OutputRequest(("logprobs",)), splitter.number_for(len(split)))
    tokens = planned.setting.tokens
    assert tokens.n_micro_batches == len(built)
    assert tokens.per_micro_batch == max(len(micro_batch.input_ids) for micro_batch in built)
