"""Curves: thinning keeps what somebody looks for; phases stay true to time; heat maps stay bounded."""

from __future__ import annotations

import base64
import math

import pytest

from archon_core.run_files.expert_load import ExpertLoad
from archon_report import loads
from archon_report.loads import SCALE, heat_map
from archon_report.panels import OTHERS, panels_of
from archon_report.series import Series, cumulated, series_of, thin, time_split


def test_the_last_value_of_a_step_counts_and_steps_are_sorted():
    found = series_of([{"step": 2, "loss": 1.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "eval/loss": 5}])
    assert found == {"loss": Series((1, 2), (3.0, 2.0)), "eval/loss": Series((2,), (5.0,))}


def test_thinning_keeps_spikes_both_ends_and_values_that_are_not_finite():
    values = [math.sin(n / 50) for n in range(10_000)]
    values[1234], values[5678], values[9001] = 100.0, -100.0, math.nan
    found = thin(Series(tuple(range(10_000)), tuple(values)), most=200)
    assert len(found.steps) <= 203
    assert list(found.steps) == sorted(set(found.steps))
    assert {0, 1234, 5678, 9001, 9999} <= set(found.steps)
    assert found.not_finite == [9001]
    short = Series((1, 2), (1.0, 2.0))
    assert thin(short, most=2) is short


def test_phases_of_long_runs_are_means_over_intervals():
    rows = [{"step": n, "time/step": 3.0, "time/rollout": n % 2 * 2.0, "time/logprobs": 2.0} for n in range(1, 301)]
    split = time_split([*rows, {"step": 300, "time/eval": 50.0}], most=150)
    assert split is not None
    assert split.steps == tuple(range(1, 301, 2))
    assert split.parts == {"rollout": (1.0,) * 150, "log-probabilities": (2.0,) * 150}
    assert time_split([{"step": 1, "loss": 1.0}]) is None


def test_phases_that_the_first_steps_lack_stand_where_a_step_runs_them():
    first = {"step": 1, "time/rollout": 1.0, "time/publish": 1.0, "time/step": 2.0}
    later = {"step": 2, "time/rollout": 1.0, "time/update": 1.0, "time/publish": 1.0, "time/step": 3.0}
    split = time_split([first, later])
    assert split is not None
    assert list(split.parts) == ["rollout", "update", "publication"]


def test_sums_skip_what_is_not_finite():
    assert cumulated(Series((1, 2, 3), (1.0, math.nan, 2.0))) == Series((1, 2, 3), (1.0, 1.0, 3.0))
    assert cumulated(None) is None


def test_every_metric_has_one_panel_and_quiet_ones_stand_aside():
    metrics = ["loss", "reward", "own/metric", "skipped_updates", "clip_fraction", "eval/reward_avg@4"]
    panels = panels_of(metrics, zero=["skipped_updates", "reward"])
    assert sorted(panel.metric for panel in panels) == sorted(metrics)
    aside = [panel.metric for panel in panels if panel.group == OTHERS]
    assert aside == ["own/metric", "skipped_updates"]


def test_metrics_that_usually_are_zero_stand_aside_unless_their_zero_says_something():
    metrics = ["clip_fraction", "dropped/left_out", "dropped/no_reward", "memory/peak_gb"]
    panels = {panel.metric: panel for panel in panels_of(metrics, zero=metrics[:2])}
    assert panels["clip_fraction"].group == "Stability"
    assert panels["dropped/left_out"].group == OTHERS
    assert panels["dropped/no_reward"].title == "dropped groups: no reward"
    assert panels["memory/peak_gb"].title == "peak memory, GB"


def test_a_heat_map_has_loads_as_multiples_of_their_layer_s_mean(monkeypatch):
    steps = [ExpertLoad(n, {"10": (n, 3 * n), "2": (5, 5)}) for n in (1, 2, 3)]
    found = heat_map([*steps, ExpertLoad(4, {"2": (0, 0)})])
    assert (found["layers"], found["experts"], found["steps"]) == (["2", "10"], 2, [1, 2, 3, 4])
    row = [SCALE, SCALE, SCALE // 2, SCALE * 3 // 2]
    assert list(base64.b64decode(found["cells"])) == [*row, *row, *row, 0, 0, 0, 0]
    monkeypatch.setattr(loads, "MOST_CELLS", 8)
    assert heat_map([*steps, ExpertLoad(4, {"2": (0, 64)})])["steps"] == [1, 3, 4]


def test_the_largest_byte_stands_for_all_larger_loads():
    found = heat_map([ExpertLoad(1, {"0": (1000, *[0] * 15)})])
    assert base64.b64decode(found["cells"])[0] == 255


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_values_stay_in_series(value):
    [series] = series_of([{"step": 1, "loss": value}]).values()
    assert series.not_finite == [1]
