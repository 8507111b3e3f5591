"""``archon plugins``, ``archon models`` and ``archon schedules``, as tables and as JSON."""

from __future__ import annotations

import json

import pytest

from archon_core.cli.console import fit_columns

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

FALCON = {
    "name": "falcon",
    "target": "a.b:c",
    "aliases": ["bird"],
    "summary": "Birds of prey",
    "config": [],
    "model_types": ["falcon", "falcon_h1"],
    "arguments": "",
    "weight_map": "",
    "parallel_plan": "",
    "tiny_config": "",
    "anatomy": "",
    "capabilities": ["cp", "tp"],
    "needs": ["moe"],
    "rounds_inside": "",
}
"""All fields of its spec, as JSON has them."""

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
    lines = [line.rstrip() for line in outcome.out.splitlines()]
    row = next(number for number, line in enumerate(lines) if line.startswith("models-falcon"))
    assert lines[row].split() == ["models-falcon", "archon-models-falcon", "2.5", "loaded"]
    assert lines[row + 1] == "    model: falcon"
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
    assert plugins["models-falcon"]["specs"] == [{"kind": "model", **FALCON}]


def test_models_lists_name_types_capabilities_and_package(archon, site):
    site.install("archon-models-falcon", MODELS)
    row = next(line for line in archon("models").out.splitlines() if line.startswith("falcon"))
    assert row.split() == ["falcon,", "bird", "falcon,", "falcon_h1", "cp", "tp", "moe", "archon-models-falcon"]


def test_models_as_json(archon, site):
    site.install("archon-models-falcon", MODELS)
    models = {model["name"]: model for model in json.loads(archon("models", "--json").out)}
    assert models["falcon"] == {**FALCON, "package": "archon-models-falcon"}


def test_schedules_lists_stages_placement_and_package(archon, site):
    site.install("archon-spiral", SCHEDULES)
    row = next(line for line in archon("schedules").out.splitlines() if line.startswith("Spiral"))
    assert row.split() == ["Spiral", "S", "2+", "v", "yes", "archon-spiral"]
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


FIRST_PARTY_SCHEDULES = """
@hookimpl
def archon_schedules():
    return [
        ScheduleSpec("InterleavedZeroBubbleV", "a.b:c", aliases=("IZBV", "ZB1PV"), stages_per_rank=None),
        ScheduleSpec("Spiral", "a.b:c", splits_backward=True),
    ]
"""


@pytest.mark.parametrize("columns", [80, 60, 30])
@pytest.mark.parametrize("listing", ["plugins", "models", "schedules"])
def test_a_listing_breaks_no_word_and_keeps_to_the_width_of_the_terminal(archon, site, monkeypatch, listing, columns):
    site.install("archon-models-falcon", MODELS)
    site.install("archon-pipelines", FIRST_PARTY_SCHEDULES)
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = archon(listing).out.splitlines()
    words = {word for line in lines for word in line.replace(",", " ").split()}
    report = json.loads(archon("plugins", "--json").out)
    kind = {"models": "model", "schedules": "schedule"}.get(listing)
    specs = [spec for plugin in report["plugins"] for spec in plugin["specs"] if kind in (None, spec["kind"])]
    assert {name for spec in specs for name in (spec["name"], *(spec["aliases"] if kind else ()))} <= words
    assert {"models": "archon-models-falcon", "schedules": "archon-pipelines"}.get(listing, "archon-pipelines") in words
    too_long = [line for line in lines if len(line.rstrip()) > columns and len(line.split()) > 2]
    assert not too_long


def test_widths_of_columns_shrink_the_widest_first_and_never_below_a_word():
    rows = [("name", "a long heading"), ("InterleavedZeroBubble", "two words")]
    assert fit_columns(rows, 80) == [21, 14]
    assert fit_columns(rows, 36) == [21, 13]
    assert fit_columns(rows, 30) == [21, 7]
    assert fit_columns(rows, 29) is None
