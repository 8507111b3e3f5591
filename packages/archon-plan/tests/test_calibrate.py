"""Measuring a device: on one process, in a world of ranks, and what becomes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from archon_core.errors import ConfigError
from archon_core.models.anatomy import AttentionAnatomy, ExpertsAnatomy, LayerAnatomy, ModelAnatomy, WeightShape
from archon_core.models.parallel_plan import HeadCounts
from archon_engine.distributed.process_group import ensure_single_process_group
from archon_plan.calibrate import calibrate, usable_cores
from archon_plan.calibration_sizes import Sizes
from archon_plan.devices import Device, find_device, write_device
from archon_testing.worlds import run_world

TINY = Sizes(tokens=64, sequence=32, matrices=((32, 32),), experts=(2, 16, 32), heads=(4, 2, 8))
MEASURED = ("peak_fp32", "memory_bandwidth", "launch", "efficiency.dense", "efficiency.grouped", "efficiency.attention")


def test_every_measured_figure_is_positive_and_says_so(tmp_path: Path):
    threads = torch.get_num_threads()
    device = calibrate(TINY, seconds=0.01, device_type="cpu", name="this core")
    rows = {name: (value, source) for name, value, source in device.rows()}
    for name in MEASURED:
        assert rows[name][0] > 0
        assert rows[name][1] == "measured"
    assert device.kind == "cpu"
    # Links are those of the table without a process group.
    assert rows["node_bandwidth"][1] != "measured"
    # It measures one thread, and plans give a rank its share of the cores.
    assert device.cores == device.devices_per_node == usable_cores()
    assert torch.get_num_threads() == threads
    write_device(device, tmp_path / "here.yaml")
    assert find_device(str(tmp_path / "here.yaml")) == device


def test_a_group_of_this_process_alone_changes_nothing():
    ensure_single_process_group()
    device = calibrate(TINY, seconds=0.01, device_type="cpu")
    assert device.devices_per_node == usable_cores()
    assert device.source("node_bandwidth") != "measured"


def test_efficiencies_are_shares_of_the_fastest_product():
    device = calibrate(TINY, seconds=0.01, device_type="cpu")
    shares = device.efficiency.dense, device.efficiency.grouped, device.efficiency.attention
    assert all(0 < share <= 1 for share in shares)


def measured_in_a_world() -> Device:
    return calibrate(TINY, seconds=0.01, device_type="cpu")


@pytest.mark.wide
def test_ranks_of_a_world_measure_their_links_and_agree():
    devices = run_world(measured_in_a_world, 2)
    assert devices[0] == devices[1]
    assert devices[0].source("node_bandwidth") == "measured"
    assert devices[0].node_latency > 0
    assert devices[0].devices_per_node == 2
    assert devices[0].cores == usable_cores()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(
        ConfigError, match="found device 'cuda', which this machine does not have; allowed are cpu only"
    ):
        calibrate(TINY, device_type="cuda")


def test_sizes_of_a_model_are_those_of_one_rank():
    layer = LayerAnatomy(
        weights=(
            WeightShape("attention.q_proj.weight", (64, 32), "column", 0),
            WeightShape("attention.o_proj.weight", (32, 64), "row", 1),
            WeightShape("moe.router.weight", (8, 32), "sequence"),
            WeightShape("moe.experts.up_proj", (8, 16, 32), "expert", 1),
            WeightShape("norm.weight", (32,), "sequence"),
        ),
        attention=AttentionAnatomy(HeadCounts(8, 2), 8, 8),
        experts=ExpertsAnatomy(8, 2, 16),
    )
    anatomy = ModelAnatomy(32, 100, (), (layer, layer), ())
    sizes = Sizes.of(anatomy, tokens=128, sequence=256, tensor=2, places=4)
    assert sizes.matrices == ((32, 32),)
    assert sizes.experts == (2, 16, 32)
    assert sizes.heads == (4, 1, 8)
    assert sizes.sequence == 128


def test_reading_a_measured_device_imports_no_torch(tmp_path: Path):
    write_device(find_device("cpu"), tmp_path / "here.yaml")
    code = (
        "import sys; from archon_plan.devices import find_device; "
        f"find_device({str(tmp_path / 'here.yaml')!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
