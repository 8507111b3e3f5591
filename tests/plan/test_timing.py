"""Times of steps: the pipeline's bubble, closed forms, and what a change of layout or device does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from archon_core import registry
from archon_core.contracts.pipeline import PIPELINE, ActionKind
from archon_core.layout.dims import ParallelDims
from archon_core.plugins import PipelineSpec, ScheduleSpec
from archon_pipeline.costs import Costs, StageCosts
from archon_pipeline.simulator import simulate
from archon_plan import timing
from archon_plan.collectives import seconds_of
from archon_plan.devices import Device, Efficiency, find_device, override
from archon_plan.parts import plan_stages, schedule_actions
from archon_plan.setting import Setting, Tokens, Types
from archon_plan.shared_cores import with_threads
from archon_plan.timing import BUBBLE, CORES, StepClock, step_time
from archon_plan.traffic import transfers, transfers_once
from archon_plan.units import units_of
from plan.planned_models import MOE, SMALL, anatomy_of

H100 = find_device("h100")
FREE = Device("free links", 1e15, 1e15, 1e15, 1e30, 1e30, 0, 1e30, 0, 1e30, 8, Efficiency(1, 1, 1, 1, 1, 1), launch=0)
"""Infinitely fast but for products, which it computes at 10^15 FLOP/s."""


def setting_of(
    model: dict = SMALL, *, tokens: Tokens | None = None, schedule: str = "1F1B", dims: ParallelDims, **options
) -> Setting:
    anatomy = anatomy_of(model)
    tokens = tokens or Tokens(4096, 8, 512)
    if dims.pp == 1:
        return Setting(anatomy, dims, tokens, **options)
    spec = registry().get(ScheduleSpec, schedule)
    split = SimpleNamespace(pp_layers_per_stage=None, pp_first_stage_less_layers=None, pp_last_stage_less_layers=None)
    stages = plan_stages(anatomy, registry().get(PipelineSpec, PIPELINE), spec, n_ranks=dims.pp, options=split)
    actions = schedule_actions(spec, stages, dims.pp, tokens.n_micro_batches)
    options = {"reshards": False} | options
    return Setting(anatomy, dims, tokens, stages=stages, schedule=spec, actions=actions, **options)


SCHEDULES = ("GPipe", "1F1B", "Interleaved1F1B", "InterleavedZeroBubble", "ZBVZeroBubble")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bubble_is_that_of_the_simulator(schedule):
    setting = setting_of(dims=ParallelDims(pp=4, dp_shard=2), schedule=schedule, checkpointing="full")
    clock = StepClock(setting, FREE)
    seconds = [
        {kind: sum(clock.action(stage, kind).values()) for kind in ActionKind} for stage in range(len(setting.stages))
    ]
    costs = Costs(
        tuple(
            StageCosts(
                own[ActionKind.FORWARD],
                own[ActionKind.BACKWARD_INPUT],
                own[ActionKind.BACKWARD_WEIGHT],
                own[ActionKind.BACKWARD],
            )
            for own in seconds
        )
    )
    simulated = simulate(setting.actions, setting.stages.rank_of, costs)
    step = clock.step()
    assert step.bubble == pytest.approx(simulated.bubble, rel=1e-12)
    assert step.total == pytest.approx(simulated.end, rel=1e-9)


@pytest.mark.parametrize("micro_batches", [4, 16])
def test_equal_stages_have_the_published_bubble_of_1f1b(micro_batches):
    """(p - 1) / m of Narayanan et al., arXiv:2104.04473, section 2.2, for equal stages and free messages."""
    model = SMALL | {"vocab_size": 8}
    setting = setting_of(model, dims=ParallelDims(pp=4), tokens=Tokens(4096, micro_batches, 512), checkpointing="none")
    # The tiny head makes the last stage one part in a thousand longer, for which three ranks wait.
    assert step_time(setting, FREE).bubble == pytest.approx(3 / micro_batches, rel=1e-2)


@pytest.mark.parametrize(
    "dims",
    [
        ParallelDims(dp_shard=16),
        ParallelDims(dp_replicate=2, dp_shard=4, tp=2),
        ParallelDims(dp_shard=4, cp=2, tp=2, ep=8),
        ParallelDims(pp=2, dp_shard=4, tp=2, ep=4, etp=2),
    ],
    ids=lambda dims: dims.describe(),
)
@pytest.mark.parametrize("options", [{}, {"trains": False}, {"optimizer": "muon"}, {"offloads": True}], ids=str)
def test_parts_add_up_to_the_step(dims, options):
    schedule = "1F1B"
    setting = setting_of(MOE, dims=dims, tokens=Tokens(8192, 4, 4096), schedule=schedule, **options)
    if not setting.trains and dims.pp > 1:
        setting = replace(
            setting, actions=tuple(tuple(a for a in own if a.kind is ActionKind.FORWARD) for own in setting.actions)
        )
    step = step_time(setting, H100)
    assert sum(step.parts.values()) == pytest.approx(step.total, rel=1e-9)
    assert all(seconds > 0 for seconds in step.parts.values())
    assert 0 < step.mfu < 1
    assert step.limit


def test_one_rank_takes_its_flops_over_the_peak():
    setting = setting_of(dims=ParallelDims(), checkpointing="none")
    step = step_time(setting, FREE)
    # The published FLOPs leave out that backward recomputes logits and scores.
    head = 2 * 4096 * 8 * 1024 * 256
    scores = 8 * 8 * 2 * 32 * 4096 * 8 * (513 / 2)
    assert step.total == pytest.approx((step.flops + head + 2 * scores / 2) / 1e15, rel=1e-9)
    assert BUBBLE not in step.parts


@pytest.mark.parametrize("axis", ["dp_shard", "cp", "tp"])
def test_free_links_halve_a_step_on_twice_the_ranks(axis):
    one = step_time(setting_of(dims=ParallelDims()), FREE)
    tokens = Tokens(4096, 4 if axis == "dp_shard" else 8, 512)
    two = step_time(setting_of(dims=ParallelDims(**{axis: 2}), tokens=tokens), FREE)
    assert two.total == pytest.approx(one.total / 2, rel=1e-9)
    assert two.mfu == pytest.approx(one.mfu, rel=1e-9)


def test_recomputation_costs_time_but_no_mfu_flops():
    none, full = (
        step_time(setting_of(dims=ParallelDims(dp_shard=8), checkpointing=mode), FREE) for mode in ("none", "full")
    )
    assert none.flops == full.flops
    assert full.total > none.total
    assert full.parts["recompute"] - none.parts["recompute"] == pytest.approx(full.total - none.total, rel=1e-6)


def test_tensor_ranks_across_nodes_wait_longer():
    setting = setting_of(MOE, dims=ParallelDims(dp_shard=2, tp=4), tokens=Tokens(8192, 2, 4096))
    inside = step_time(setting, H100)
    across = step_time(setting, override(H100, ["devices_per_node=2"]))
    assert across.parts["waiting for tensor ranks"] > 3 * inside.parts["waiting for tensor ranks"]
    assert across.parts["dense products"] == inside.parts["dense products"]


def test_weights_are_gathered_behind_computation_unless_it_is_too_short():
    dims = ParallelDims(dp_shard=64)
    long = step_time(setting_of(MOE, dims=dims, tokens=Tokens(65536, 1, 4096)), H100)
    short = step_time(setting_of(MOE, dims=dims, tokens=Tokens(512, 1, 512)), H100)
    hidden = sum(part for name, part in long.parts.items() if name.startswith("waiting")) / long.total
    shown = sum(part for name, part in short.parts.items() if name.startswith("waiting")) / short.total
    assert hidden < 0.1
    assert shown > 0.5
    assert short.limit.startswith(("gathering weights", "summing gradients"))


def test_a_cpu_waits_for_all_gathers():
    setting = setting_of(dims=ParallelDims(dp_shard=2))
    gpu = replace(find_device("cpu"), kind="gpu")
    assert step_time(setting, find_device("cpu")).parts["waiting for weights"] > step_time(setting, gpu).parts.get(
        "waiting for weights", 0
    )


def test_only_stages_between_others_split_their_backward_passes():
    """archon_pipeline.stage_passes: the first stage does all in W, the last all in I. Each half recomputes
    a block once."""
    setting = setting_of(dims=ParallelDims(pp=4), schedule="InterleavedZeroBubble", checkpointing="full")
    clock = StepClock(setting, FREE)
    whole = clock.action(3, ActionKind.BACKWARD)
    inputs, weights = clock.action(3, ActionKind.BACKWARD_INPUT), clock.action(3, ActionKind.BACKWARD_WEIGHT)
    assert inputs["recompute"] == whole["recompute"] == weights["recompute"] > 0
    assert sum(clock.action(0, ActionKind.BACKWARD_INPUT).values()) == 0
    assert sum(clock.action(7, ActionKind.BACKWARD_WEIGHT).values()) == 0
    assert clock.action(0, ActionKind.BACKWARD_WEIGHT) == clock.action(0, ActionKind.BACKWARD)


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize(
    ("model", "dims", "schedule"),
    [
        (MOE, ParallelDims(dp_replicate=2, dp_shard=4, cp=2, tp=4, ep=8, etp=2), ""),
        (MOE, ParallelDims(pp=2, dp_shard=2, cp=2, tp=2, ep=4), "ZBVZeroBubble"),
        (SMALL, ParallelDims(pp=4, dp_shard=2, tp=2), "Interleaved1F1B"),
    ],
    ids=["moe", "moe-p2", "dense-p4"],
)
def test_collectives_of_all_actions_take_as_long_as_all_traffic(model, dims, schedule, checkpointing):
    """Nothing is lost on the way from units to stages: a device that only communicates, and overlaps nothing, waits as
    long as ``transfers`` takes."""
    # Copies around collectives take no time.
    device = replace(override(H100, ["launch=0", "memory_bandwidth=1e30"]), kind="cpu")
    setting = setting_of(model, dims=dims, tokens=Tokens(8192, 8, 4096), schedule=schedule, checkpointing=checkpointing)
    clock = StepClock(setting, device)
    counts = Counter(
        (rank, action.stage, action.kind) for rank, own in enumerate(setting.actions) for action in own
    ) or {(0, 0, kind): 8 for kind in (ActionKind.FORWARD, ActionKind.BACKWARD)}
    for rank in range(dims.pp):
        waited = clock.after_passes(rank)["waiting for sums of gradients"]
        waited += sum(
            count * sum(seconds for part, seconds in clock.action(stage, kind).items() if part.startswith("waiting"))
            for (of, stage, kind), count in counts.items()
            if of == rank
        )
        waited += clock.first_gather(rank)
        sent = sum(
            seconds_of(each, dims, device)
            for each in transfers(setting)
            if each.pipeline_rank == rank and each.axis != "pp" and each not in transfers_once(setting, rank)
        )
        assert waited == pytest.approx(sent, rel=1e-6)


LLAMA_8B = SMALL | {
    "model_type": "qwen2",  # with biases of queries and keys, which take no time
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
}


@pytest.mark.parametrize(
    ("device", "figures", "ranks", "sequences", "compiles", "published"),
    [
        ("a100-80g", (), 64, 1, False, 2973),
        # Limited to 500 W, with HBM2e.
        ("h100", ("memory_bandwidth=2.4e12",), 8, 2, False, 5762),
        ("h100", ("memory_bandwidth=2.4e12",), 8, 2, True, 6667),
    ],
    ids=["a100", "h100", "h100-compiled"],
)
def test_tokens_per_second_are_near_published_ones(device, figures, ranks, sequences, compiles, published):
    """Llama 3.1 8B at 8,192 tokens, FSDP2, selective checkpointing: torchtitan, docs/performance.md.

    The table's efficiencies are fitted to these runs; 20% covers the power limit and what torchtitan fuses.
    """
    setting = setting_of(
        LLAMA_8B, dims=ParallelDims(dp_shard=ranks), tokens=Tokens(8192 * sequences, 1, 8192), compiles=compiles
    )
    step = step_time(setting, override(find_device(device), figures))
    assert step.tokens_per_second / ranks == pytest.approx(published, rel=0.2)


def test_a_data_group_of_one_rank_copies_its_weights_and_gradients():
    """Per element with fp32 everywhere: 8 bytes for the weight in each pass; for the gradient 8 into the buffer, 16
    through the division, and 12 to add it to that of the first micro-batch."""
    setting = setting_of(
        SMALL, dims=ParallelDims(tp=2), tokens=Tokens(1024, 2, 1024), types=Types(4, 4, 4), reshards=True
    )
    device = replace(H100, kind="cpu")
    parts = step_time(setting, device).parts
    block = units_of(setting, 0)[0]
    last = block.last.stored + block.root.stored
    passes = 2 * block.total.stored - last  # the last units stay whole until backward
    moved = 2 * (8 * passes + 36 * block.total.stored)
    bandwidth = device.memory_bandwidth * device.efficiency.memory
    assert parts["copying weights and gradients"] == pytest.approx(moved / bandwidth)


@pytest.mark.parametrize(
    "dims",
    [ParallelDims(dp_shard=4), ParallelDims(dp_shard=2, tp=2), ParallelDims(pp=2, dp_shard=2), ParallelDims(pp=4)],
    ids=lambda dims: dims.describe(),
)
def test_four_ranks_on_two_cores_take_all_work_over_two(dims):
    """But for the ends of a pipeline of four ranks, where one of them runs alone."""
    tokens = Tokens(1024, 8 // dims.dp_shard, 512)
    setting = setting_of(SMALL | {"num_hidden_layers": 8}, dims=dims, tokens=tokens, types=Types(4, 4, 4))
    free = replace(FREE, kind="cpu")
    own, shared = step_time(setting, free), step_time(setting, replace(free, cores=2.0))
    work = own.total * (4 if dims.pp == 1 else 4 / (1 + own.bubble))
    assert shared.total >= work / 2 * (1 - 1e-9)
    idle = 0.0 if dims.pp < 4 else 2 * own.total / (8 + 3)
    assert shared.total <= (work / 2 + idle) * (1 + 1e-6)
    assert sum(shared.parts.values()) == pytest.approx(shared.total, rel=1e-9)
    assert shared.parts[CORES] > 0
    assert CORES not in own.parts
    assert shared.mfu == pytest.approx(2 * own.mfu * own.total / shared.total, rel=1e-9)


def test_ranks_share_the_cores_of_their_own_machine_only():
    setting = setting_of(SMALL, dims=ParallelDims(pp=2, dp_shard=2), tokens=Tokens(1024, 4, 512))
    device = replace(find_device("cpu"), devices_per_node=2, cores=2.0)
    assert step_time(setting, device) == step_time(setting, replace(device, cores=0.0))
    # With one core each, every action takes twice as long, and no rank can use the cores of the other machine.
    free = replace(FREE, kind="cpu", devices_per_node=2)
    alone, halved = step_time(setting, free), step_time(setting, replace(free, cores=1.0))
    assert halved.total == pytest.approx(2 * alone.total, rel=1e-9)
    assert halved.bubble == pytest.approx(alone.bubble, rel=1e-9)


@pytest.mark.parametrize("dims", [ParallelDims(), ParallelDims(dp_shard=3), ParallelDims(pp=4)], ids=["d1", "d3", "p4"])
def test_ranks_divide_the_cores_among_their_threads(dims):
    """Of 8 cores, one rank has 8, three have 2 each, and a stage that runs alone still has its 2."""
    setting = setting_of(SMALL, dims=dims, tokens=Tokens(1024, 8, 512), types=Types(4, 4, 4))
    free = replace(FREE, kind="cpu")
    one, all_cores = step_time(setting, free), step_time(setting, replace(free, cores=8.0))
    assert all_cores.total == pytest.approx(one.total / (8 // dims.world_size), rel=1e-9)
    assert all_cores.bubble == pytest.approx(one.bubble, rel=1e-9)
    assert CORES not in all_cores.parts


@pytest.mark.parametrize("cores", [1, 2, 7, 8, 12, 64])
def test_threads_are_counted_once(cores):
    device = replace(find_device("cpu"), cores=float(cores), devices_per_node=cores)
    for world in range(1, 2 * cores):
        threads = with_threads(device, world)
        assert threads.peak_fp32 == max(1, cores // min(world, cores)) * device.peak_fp32
        assert with_threads(threads, world) == threads


def test_a_replay_needs_no_cores_where_each_rank_has_its_own(monkeypatch):
    """A package written before ``cores`` plans everything but ranks that share them."""
    setting = setting_of(dims=ParallelDims(pp=2))
    expected, replay = step_time(setting, H100), timing.installed_replay()
    monkeypatch.setattr(timing, "installed_replay", lambda: lambda *given, message=0.0: replay(*given, message=message))
    assert step_time(setting, H100) == expected
