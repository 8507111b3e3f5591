"""Which rank holds what, against the meshes and boxes of the engine."""

from __future__ import annotations

import pytest

from archon_core.contracts.engine_config import MicroBatchSpec
from archon_core.layout import ParallelDims
from archon_core.plugins import registry
from archon_engine.options.archon import ArchonEngineConfig
from archon_plan.constraints import check_engine
from archon_plan.engine_plan import plan_engine
from archon_plan.layout_report import describe_meshes, split_rows
from archon_plan.models import find_model
from archon_plan.parts import EngineRequest
from archon_plan.placement import find_placement
from archon_plan.setting import Setting

LAYOUTS = ("archon:d4", "archon:p4t2c2e4", "archon:(attn:d4t2|ffn:t2e2)", "archon:r2d2p2t4e8", "archon:t8c2")


def setting_of(layout: str, model: str = "qwen3-30b-a3b") -> Setting:
    config = ArchonEngineConfig(mb_spec=MicroBatchSpec(max_tokens_per_mb=4096))
    request = EngineRequest("actor", layout, find_model(model), config)
    check = check_engine(request, registry())
    assert check.violations == ()
    return plan_engine(request, check).setting


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_is_in_the_class_of_its_coordinates(layout: str) -> None:
    setting = setting_of(layout)
    dims: ParallelDims = setting.dims
    found = {}
    for one in find_placement(setting).classes:
        for rank in one.ranks:
            assert rank not in found
            found[rank] = one
    assert sorted(found) == list(range(dims.stage_size))
    for rank, one in found.items():
        dense, expert = dims.dense_grid.coordinates(rank), dims.expert_grid.coordinates(rank)
        heads, rows = 32 // dims.tp, -(-151_936 // dims.tp)
        assert one.query_heads == range(dense["tp"] * heads, (dense["tp"] + 1) * heads)
        assert one.vocabulary == range(dense["tp"] * rows, min((dense["tp"] + 1) * rows, 151_936))
        each, width = 128 // dims.ep, 768 // dims.etp
        assert one.experts == range(expert["ep"] * each, (expert["ep"] + 1) * each)
        assert one.expert_columns == range(expert["etp"] * width, (expert["etp"] + 1) * width)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pipeline_ranks_hold_all_layers_and_parameters_once(layout: str) -> None:
    setting = setting_of(layout)
    ranks = find_placement(setting).pipeline
    layers = [layer for rank in ranks for _, held in rank.stages for layer in held]
    assert sorted(layers) == list(range(48))
    assert sum(rank.parameters for rank in ranks) == setting.anatomy.n_parameters
    assert [rank.ranks.start for rank in ranks] == [number * setting.dims.stage_size for number in range(len(ranks))]
    assert sum(rank.has_embed for rank in ranks) == sum(rank.has_head for rank in ranks) == 1


def test_a_tied_head_on_another_rank_holds_a_copy_of_the_embedding() -> None:
    setting = setting_of("archon:p2", "qwen3-0.6b")
    embedding = 151_936 * 1024
    ranks = find_placement(setting).pipeline
    assert ranks[0].has_embed != ranks[0].has_head
    assert sum(rank.parameters for rank in ranks) == setting.anatomy.n_parameters + embedding


def test_meshes_are_written_with_both_views_of_the_ranks() -> None:
    assert describe_meshes(setting_of("archon:p4t2c2e4")).split("\n") == [
        "16 ranks = 4 pipeline x 2 context x 2 tensor",
        "         = 4 pipeline x 4 expert, for experts",
    ]
    assert describe_meshes(setting_of("archon:d1", "qwen3-8b")) == "1 rank = 1"


def test_a_rank_gets_whole_key_heads_for_its_query_heads() -> None:
    rows = {row[0]: row[2] for row in split_rows(setting_of("archon:t8c2"))}
    assert rows["32 query and 4 key heads"] == "2 query and 1 key"
    rows = {row[0]: row[2] for row in split_rows(setting_of("archon:t2d2"))}
    assert rows["32 query and 4 key heads"] == "16 query and 2 key"
