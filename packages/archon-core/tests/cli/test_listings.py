"""``archon plugins``, ``archon models`` and ``archon schedules``, as tables and as JSON."""

from __future__ import annotations

import json

import pytest

MODELS = """
@hookimpl
def archon_models():
    return [
        ModelSpec(
            name="falcon", target="a.b:c", aliases=("bird",), model_types=("falcon", "falcon_h1"),
            capabilities=frozenset({"tp", "cp"}), needs=("moe",), summary="Birds of prey",
        )
    ]
"""

SCHEDULES = """
@hookimpl
def archon_schedules():
    return [
        ScheduleSpec("Spiral", "a.b:c", aliases=("S",), stages_per_rank=None, placement="v", splits_backward=True)
    ]
"""


@pytest.fixture
def alone(monkeypatch, site):
    """Only the fake plugins: leave out what is installed beside them."""
    from archon_core.plugins.discovery import discover

    def leave_out_others(*kept):
        others = [point.name for point in discover().entry_points if point.name not in kept]
        monkeypatch.setenv("ARCHON_DISABLE_PLUGINS", ",".join(others))

    return leave_out_others


def test_plugins_shows_what_each_provides_and_why_one_is_broken(archon, site, alone):
    site.install("archon-models-falcon", MODELS, version="2.5")
    site.install("archon-broken", "raise RuntimeError('no such accelerator')")
    alone("models-falcon", "broken")
    outcome = archon("plugins")
    assert outcome.code == 0
    row = next(line for line in outcome.out.splitlines() if line.startswith("models-falcon"))
    assert row.split() == ["models-falcon", "archon-models-falcon", "2.5", "loaded", "model:", "falcon"]
    assert "archon-broken (broken): importing 'archon_broken_plugin' raised RuntimeError: no such" in outcome.out


def test_plugins_as_json_holds_specs_causes_and_problems(archon, site):
    site.install("archon-models-falcon", MODELS + "\ndef archon_reward():\n    return []\n")
    site.install("archon-broken", "raise RuntimeError('no such accelerator')")
    report = json.loads(archon("plugins", "--json").out)
    plugins = {plugin["name"]: plugin for plugin in report["plugins"]}
    assert report["plugin_api"] == "1.0"
    assert plugins["core"]["status"] == "loaded"
    assert "no such accelerator" in plugins["broken"]["cause"]
    assert "archon_rewards" in plugins["models-falcon"]["problems"][0]
    assert plugins["models-falcon"]["specs"] == [
        {"kind": "model", "name": "falcon", "aliases": ["bird"], "target": "a.b:c", "summary": "Birds of prey"}
    ]


def test_models_lists_name_types_capabilities_and_package(archon, site):
    site.install("archon-models-falcon", MODELS)
    row = next(line for line in archon("models").out.splitlines() if line.startswith("falcon"))
    assert row.split() == ["falcon,", "bird", "falcon,", "falcon_h1", "cp", "tp", "moe", "archon-models-falcon"]


def test_models_as_json(archon, site):
    site.install("archon-models-falcon", MODELS)
    models = {model["name"]: model for model in json.loads(archon("models", "--json").out)}
    assert models["falcon"] == {
        "name": "falcon",
        "aliases": ["bird"],
        "model_types": ["falcon", "falcon_h1"],
        "capabilities": ["cp", "tp"],
        "needs": ["moe"],
        "package": "archon-models-falcon",
        "summary": "Birds of prey",
    }


def test_schedules_lists_stages_placement_and_package(archon, site):
    site.install("archon-spiral", SCHEDULES)
    row = next(line for line in archon("schedules").out.splitlines() if line.startswith("Spiral"))
    assert row.split() == ["Spiral", "S", "2", "or", "more", "v", "yes", "archon-spiral"]
    schedules = {schedule["name"]: schedule for schedule in json.loads(archon("schedules", "--json").out)}
    assert schedules["Spiral"]["stages_per_rank"] is None


def test_without_plugins_the_listings_say_what_to_install(archon, site, alone):
    alone()
    assert "archon-pipeline" in archon("schedules").out
    assert json.loads(archon("schedules", "--json").out) == []


def test_a_listing_says_on_standard_error_which_plugin_it_lacks(archon, site):
    site.install("archon-broken", "raise RuntimeError")
    outcome = archon("models")
    assert "archon-broken 1.0 (failed)" in outcome.err
    assert "archon-broken" not in outcome.out


def test_a_listing_in_a_narrow_terminal_cuts_nothing_off(archon, site, monkeypatch):
    site.install("archon-models-falcon", MODELS)
    monkeypatch.setenv("COLUMNS", "30")
    table = "".join(archon("models").out.split())
    assert "…" not in table
