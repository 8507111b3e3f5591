"""Devices: the table, settings, files."""

from __future__ import annotations

from pathlib import Path

import pytest

from archon_core.errors import ConfigError, UnknownNameError
from archon_plan.device_table import DEVICES
from archon_plan.devices import find_device, override, read_device, write_device


@pytest.mark.parametrize(
    ("name", "bf16", "fp32", "bandwidth", "link"),
    [
        # Dense figures and one direction, from the vendors' data sheets.
        ("a100-40g", 312e12, 19.5e12, 1.555e12, 300e9),
        ("a100-80g", 312e12, 19.5e12, 2.039e12, 300e9),
        ("h100", 989e12, 67e12, 3.35e12, 450e9),
        ("h200", 989e12, 67e12, 4.8e12, 450e9),
        ("l40s", 362.05e12, 91.6e12, 0.864e12, 32e9),
        ("mi300x", 1307.4e12, 163.4e12, 5.3e12, 448e9),
    ],
)
def test_peaks_are_dense_and_links_one_way(name, bf16, fp32, bandwidth, link):
    device = find_device(name)
    assert (device.peak(2), device.peak(4)) == (bf16, fp32)
    assert (device.memory_bandwidth, device.node_bandwidth) == (bandwidth, link)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_every_figure_of_the_table_has_a_source_and_a_possible_value(device):
    rows = device.rows()
    assert all(source for _, _, source in rows)
    # Writing every figure again runs the checks of settings on it.
    assert device.with_figures({name: value for name, value, _ in rows}, source="again") == device
    assert len({name for name, _, _ in rows}) == len(rows)


def test_an_unknown_device_names_the_nearest_and_the_way_out():
    with pytest.raises(UnknownNameError, match=r"'h10'; did you mean 'h100'\?; allowed are a100-40g, .*calibrate"):
        find_device("h10")
    assert find_device("H100") is find_device("h100")


def test_settings_replace_figures_and_their_source():
    device = override(find_device("h100"), ["efficiency.dense=0.6", "devices_per_node=4", "memory=7e10"])
    assert (device.efficiency.dense, device.devices_per_node, device.memory) == (0.6, 4, 7e10)
    assert device.source("efficiency.dense") == "--set"
    assert device.efficiency.attention == find_device("h100").efficiency.attention


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("efficiency.dense", "allowed is FIGURE=NUMBER"),
        ("efficiency.dence=0.6", "did you mean 'efficiency.dense'"),
        ("efficiency.dense=1.2", "a share above 0 and up to 1"),
        ("efficiency.dense=fast", "found 'fast'"),
        ("devices_per_node=2.5", "an integer from 1"),
        ("memory=0", "a number above 0"),
        ("launch=-1", "a number from 0"),
        ("memory=nan", "found 'nan'"),
        ("kind=tpu", "allowed are gpu and cpu"),
        ("name=x", "found figure 'name'"),
        ("cores=2", "found 2 for a gpu; allowed is 0"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        override(find_device("h100"), [setting])


def test_a_written_device_reads_back_equal_with_its_sources(tmp_path: Path):
    device = override(find_device("mi300x"), ["network_latency=1e-5"])
    write_device(device, tmp_path / "own.yaml")
    again = find_device(str(tmp_path / "own.yaml"))
    assert again == device
    assert again.rows() == device.rows()


def test_a_file_may_change_a_device_of_the_table(tmp_path: Path):
    path = tmp_path / "ours.yaml"
    # PyYAML reads 4e10 as text.
    path.write_text("base: h100\nnetwork_bandwidth: 4e10\nefficiency:\n  dense: 0.5\n", encoding="utf-8")
    device = read_device(path)
    assert (device.name, device.network_bandwidth, device.efficiency.dense) == ("ours", 4e10, 0.5)
    assert device.memory == find_device("h100").memory
    assert device.source("network_bandwidth") == str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "found list; allowed is a mapping"),
        ("memory: 1e9\n", "found no peak_bf16, .*base"),
        ("base: h100\nspeed: 3\n", "found figure 'speed'"),
        ("base: [\n", "cannot read it"),
    ],
)
def test_files_with_wrong_content_are_refused(tmp_path: Path, text, message):
    (tmp_path / "device.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        find_device(str(tmp_path / "device.yaml"))


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot read it"):
        find_device(str(tmp_path / "none.yaml"))
