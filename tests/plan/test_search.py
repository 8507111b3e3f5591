"""The search for layouts against looking at everything, and its constraints."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import MicroBatchSpec
from archon_core.errors import ConfigError
from archon_core.layout import parse_layout
from archon_core.layout.dims import ParallelDims
from archon_core.models.anatomy import ModelAnatomy
from archon_engine.options.pipelines import micro_batch_divisor
from archon_engine.step.splitting import PipelineNeeds, Splitter
from archon_plan.devices import Device, find_device, override
from archon_plan.extents import token_multiple
from archon_plan.layout_space import valid_dims
from archon_plan.micro_batches import micro_batch_numbers
from archon_plan.search import _Search, fits_in_memory, least_devices, search
from archon_plan.search_space import SearchSpace, Sought
from archon_plan.setting import Setting, Tokens
from archon_plan.timing import step_time
from plan.planned_models import MOE, SMALL, anatomy_of

H100 = find_device("h100")
TINY_MOE = MOE | {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2048,
}
CPU = override(find_device("cpu"), ["cores=8"])
SLOW_LINKS = override(H100, ["node_bandwidth=2e9", "network_bandwidth=1e9", "devices_per_node=4"])


def sought_for(anatomy: ModelAnatomy, device: Device, sequences: int, **options) -> Sought:
    aligned_to = options.pop("aligned_to", 1)
    base = Setting(anatomy, ParallelDims(), Tokens(1, 1, 256), compiles=True, aligned_to=aligned_to)
    return Sought(anatomy, device, sequences, base, **options)


def everything(sought: Sought, world: int) -> dict[ParallelDims, float]:
    """The least time of each layout, over all options that fit, without bounds and without order."""
    one = _Search(sought, world, 5, fits_in_memory)
    best: dict[ParallelDims, float] = {}
    for dims in valid_dims(sought.anatomy, world, axes=sought.axes):
        for option in one._space.options(dims):
            modes = one._space.allowed_modes(option.schedule)
            settings = [one._space.setting(dims, option, mode) for mode in modes]
            for setting in map(one._space.with_actions, settings):
                if not fits_in_memory(setting, sought.device):
                    continue
                seconds = step_time(setting, sought.device).total
                best[dims] = min(best.get(dims, float("inf")), seconds)
                # No setting is faster or smaller than its bounds.
                assert one._may_fit(dims, option, setting.checkpointing)
                number, mode = option.tokens.n_micro_batches, setting.checkpointing
                assert one._bounds.time_of(dims, option.place, number, mode) <= seconds * (1 + 1e-9)
    return best


PADDED = {"aligned_to": 96, "granularity": 2, "divisor": 3}
CASES = [
    pytest.param(SMALL, "h100", 16, 4, "60e6", {}, id="dense"),
    pytest.param(SMALL, "slow", 16, 4, "40e6", {}, id="little memory"),
    pytest.param(SMALL, "cpu", 8, 4, "60e6", PADDED, id="two threads each, padded groups"),
    pytest.param(TINY_MOE, "slow", 8, 4, "60e6", {}, id="moe", marks=pytest.mark.wide),
    pytest.param(SMALL, "slow", 4, 8, "60e6", {}, id="few sequences", marks=pytest.mark.wide),
    pytest.param(TINY_MOE, "slow", 64, 8, "60e6", PADDED, id="moe on eight, padded groups", marks=pytest.mark.soak),
]


@pytest.mark.parametrize(("model", "links", "sequences", "world", "memory", "options"), CASES)
def test_the_best_layouts_are_those_of_looking_at_everything(model, links, sequences, world, memory, options):
    anatomy = anatomy_of(model)
    device = {"h100": H100, "slow": SLOW_LINKS, "cpu": CPU}[links]
    # Memory of which some layouts and modes need more.
    device = override(device, ["context_bytes=0", "communicator_bytes=0", f"memory={memory}"])
    sought = sought_for(anatomy, device, sequences, **options)
    found = search(sought, world)
    all_times = everything(sought, world)
    assert found.layouts == sum(1 for _ in valid_dims(anatomy, world))
    assert 0 < len(all_times) < found.layouts or links == "h100"
    assert [each.time.total for each in found.candidates] == pytest.approx(sorted(all_times.values())[:5], rel=1e-12)
    for each in found.candidates:
        assert each.time.total == pytest.approx(all_times[each.setting.dims], rel=1e-12)
    # The reason: no layout is faster or smaller than its bound.
    bounds = _Search(sought, world, 5, fits_in_memory)
    for dims, seconds in all_times.items():
        assert bounds._space.plans.has(dims.pp)
        assert bounds._bounds.quick_time(dims) <= bounds._bounds.time(dims) * (1 + 1e-9)
        assert bounds._bounds.time(dims) <= seconds * (1 + 1e-9)
        assert bounds._memory.states_fit(dims)


def test_where_only_recomputation_fits_the_best_layouts_are_those_of_looking_at_everything():
    # Of Qwen3-30B-A3B over replicas and shards alone, 32 x 32 ranks among them, with sequences that fill the memory.
    anatomy = anatomy_of(MOE)
    base = Setting(anatomy, ParallelDims(), Tokens(1, 1, 131072), compiles=True)
    sought = Sought(anatomy, H100, 1024, base, axes="rd")
    found = search(sought, 1024)
    all_times = everything(sought, 1024)
    assert {each.setting.checkpointing for each in found.candidates} == {"full"}
    assert ParallelDims(dp_replicate=32, dp_shard=32) in all_times
    assert [each.time.total for each in found.candidates] == pytest.approx(sorted(all_times.values())[:5], rel=1e-12)


def test_candidates_are_layouts_that_parse_back_to_their_sizes_and_fit():
    anatomy = anatomy_of(TINY_MOE)
    found = search(sought_for(anatomy, H100, 64), 8)
    assert len(found.candidates) == 5
    times = [each.time.total for each in found.candidates]
    assert times == sorted(times)
    for each in found.candidates:
        layout = parse_layout(each.layout)
        assert layout.world_size == 8
        assert layout.parallel_dims(moe=True, option="--layout") == each.setting.dims
        assert max(rank.total for rank in each.memory) <= H100.memory
        tokens = each.setting.tokens
        ranks = each.setting.dims.dp_replicate * each.setting.dims.dp_shard
        # All candidates process the 64 sequences of 256 tokens.
        assert tokens.per_micro_batch * tokens.n_micro_batches * ranks == 64 * 256
        assert each.tokens_per_second == pytest.approx(64 * 256 / each.time.total)


@pytest.mark.parametrize("megabytes", [40, 60, 80, 100, 120, 160, 200, 300])
def test_a_schedule_that_keeps_all_micro_batches_fits_with_all_of_them(megabytes):
    device = override(H100, ["context_bytes=0", "communicator_bytes=0", f"memory={megabytes}e6"])
    sought = sought_for(anatomy_of(SMALL), device, 128, axes="p", schedules=("GPipe",))
    for each in search(sought, 2).candidates:
        assert max(rank.total for rank in each.memory) <= device.memory


def test_the_same_search_gives_the_same_answer():
    sought = sought_for(anatomy_of(TINY_MOE), H100, 16)
    first, second = (search(sought, 4) for _ in range(2))
    assert [each.layout for each in first.candidates] == [each.layout for each in second.candidates]
    assert first.settings == second.settings


def test_valid_layouts_follow_the_rules_of_layouts_and_the_sizes_of_the_model():
    anatomy = anatomy_of(TINY_MOE)
    found = list(valid_dims(anatomy, 16, cp_style="ulysses"))
    assert len(set(found)) == len(found)
    for dims in found:
        assert dims.world_size == 16
        assert dims.pp <= 4 + 2
        assert 4 % (dims.tp * dims.cp) == 0  # attention heads
        assert 8 % dims.ep == 0
        assert 64 % dims.etp == 0
        assert dims.sharding_size % (dims.ep * dims.etp) == 0
    assert ParallelDims(dp_shard=4, tp=4, ep=4, etp=2) in found
    assert ParallelDims(pp=2, dp_replicate=2, dp_shard=2, cp=2) in found
    assert {dims.cp for dims in set(valid_dims(anatomy, 16)) - set(found)} == {2, 4, 8, 16}


def test_axes_that_are_not_supported_stay_at_one():
    anatomy = anatomy_of(TINY_MOE)
    for dims in valid_dims(anatomy, 8, axes="dt"):
        assert (dims.pp, dims.cp, dims.dp_replicate, dims.ep) == (1, 1, 1, 1)
        assert dims.etp == dims.tp


def test_micro_batches_are_powers_of_two_of_whole_sequences_and_fill_the_pipeline():
    assert micro_batch_numbers(12, 1, 1) == (1, 2, 4, 8, 12)
    assert micro_batch_numbers(12, 4, 1) == (4, 8, 12)
    assert micro_batch_numbers(2, 4, 1) == (4,)
    assert micro_batch_numbers(6, 2, 4) == (4, 8)


def test_numbers_of_micro_batches_are_those_that_the_engine_runs_of_multiples_of_a_divisor():
    assert micro_batch_numbers(12, 1, 1, 3) == (3, 6, 9, 12)
    # Of 8 planned ones 3 are empty. Only a pipeline runs empty ones, up to a multiple of its ranks or for its stages.
    assert micro_batch_numbers(5, 1, 1, 4) == (4, 5)
    assert micro_batch_numbers(5, 2, 2, 4) == (4, 6)
    assert micro_batch_numbers(2, 4, 4, 3) == (4,)


@pytest.mark.parametrize("sequences", [1, 6, 23, 48])
@pytest.mark.parametrize("aligned_to", [1, 3, 64])
@pytest.mark.parametrize(("granularity", "divisor"), [(1, 1), (2, 1), (1, 3), (3, 4)])
def test_the_engine_splits_and_pads_a_batch_into_the_micro_batches_of_a_layout(
    sequences, aligned_to, granularity, divisor
):
    options = {"aligned_to": aligned_to, "granularity": granularity, "divisor": divisor, "most_tokens": 1500}
    space = SearchSpace(sought_for(anatomy_of(SMALL), H100, sequences, axes="dtpc", **options))
    for dims in space.layouts(8):
        # A data rank has whole groups.
        on_rank = -(-sequences // (granularity * dims.dp_shard)) * granularity
        for option in space.options(dims):
            tokens, pipeline = option.tokens, None
            spec = MicroBatchSpec(tokens.n_micro_batches, tokens.per_micro_batch, granularity, divisor)
            if option.schedule is not None:
                pipeline = PipelineNeeds(len(option.plan), micro_batch_divisor(option.schedule, dims.pp))
            splitter = Splitter(spec, pipeline=pipeline)
            split = splitter.plan(Batch(torch.zeros(256 * on_rank, dtype=torch.long), (256,) * on_rank))
            assert splitter.number_for(len(split)) == tokens.n_micro_batches
            multiple = math.lcm(aligned_to, token_multiple(space.base.anatomy, dims, "auto"))
            assert math.ceil(256 * max(map(len, split)) / multiple) * multiple == tokens.per_micro_batch


def test_a_strict_engine_is_not_given_layouts_that_pad_further():
    sought = sought_for(anatomy_of(SMALL), H100, 64, aligned_to=6)
    every, strict = (list(SearchSpace(replace(sought, strict=each)).layouts(8)) for each in (False, True))
    assert {dims.tp * dims.cp for dims in every} == {1, 2, 4, 8}
    assert {dims.tp * dims.cp for dims in strict} == {1, 2}
    assert [dims for dims in every if dims.tp * dims.cp <= 2] == strict
    # Without an alignment, any padding is the engine's.
    assert list(SearchSpace(replace(sought_for(anatomy_of(SMALL), H100, 64), strict=True)).layouts(8)) == every


def test_micro_batches_stay_below_the_most_tokens():
    found = search(sought_for(anatomy_of(SMALL), H100, 64, most_tokens=1024), 4)
    assert all(each.setting.tokens.per_micro_batch <= 1024 for each in found.candidates)


def test_less_memory_means_more_devices():
    anatomy = anatomy_of(MOE)
    large = least_devices(sought_for(anatomy, H100, 64), 64)
    small = least_devices(sought_for(anatomy, find_device("a100-40g"), 64), 64)
    assert large is not None
    assert small is not None
    assert large < small
    # 30.5 billion weights of 16 bytes with gradients and optimizer, over the devices' memory.
    assert large * H100.memory > 16 * anatomy.n_parameters
    assert least_devices(sought_for(anatomy, H100, 64), 2) is None


def test_nothing_fits_where_states_are_too_large():
    found = search(sought_for(anatomy_of(MOE), H100, 64), 2)
    assert found.candidates == ()
    assert found.too_large == found.layouts > 0


def test_a_search_for_nothing_is_refused():
    sought = sought_for(anatomy_of(SMALL), H100, 0)
    with pytest.raises(ConfigError, match="found 0 sequences per step"):
        search(sought, 4)
    with pytest.raises(ConfigError, match="found 0 devices"):
        search(replace(sought, sequences=1), 0)
