"""Every package in one environment: the demo trains, and a layout is held against one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fresh_environment import FreshEnvironment

from workspace import Package

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def everything(make_fresh: Callable[..., FreshEnvironment], packages: dict[str, Package]) -> FreshEnvironment:
    return make_fresh(*packages)


def test_no_plugin_stands_in_anothers_way(everything: FreshEnvironment, packages: dict[str, Package]) -> None:
    known = json.loads(everything.archon("plugins", "--json").stdout)
    found = {plugin["distribution"]: (plugin["status"], plugin["problems"]) for plugin in known["plugins"]}
    assert found == {name: ("loaded", []) for name in packages}
    assert known["problems"] == []
    strict = everything.archon("models", ARCHON_STRICT_PLUGINS="1")
    assert strict.returncode == 0, strict.stderr


def test_the_hints_of_core_name_the_packages_that_bring_things(everything: FreshEnvironment) -> None:
    program = """
from archon_core.plugins import registry
from archon_core.plugins.hints import package_for
for plugin in registry().plugins[1:]:
    for spec in plugin.specs:
        for name in (spec.name, *spec.aliases):
            if package_for(spec.kind, name) != plugin.distribution:
                print(f"{spec.kind} {name!r} is part of {plugin.distribution}, not of {package_for(spec.kind, name)}")
"""
    done = everything.python("-c", program)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_demo_trains_on_two_ranks_and_its_model_answers(everything: FreshEnvironment) -> None:
    short = ["warm_start.steps=2", "trainer.max_steps=2", "trainer.eval_size=20", "data.batch_size=4"]
    done = everything.archon("train", str(EXAMPLES / "grpo_arithmetic.yaml"), *short)
    assert done.returncode == 0, done.stderr
    folder = everything.work / "runs" / "arithmetic" / "grpo"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [-1, 0, 0, 1, 2]
    assert "Export verified: logits differ from transformers' by at most" in done.stdout
    answered = everything.archon("generate", str(folder / "export"), "07+35=", "--max-new-tokens", "3", "--json")
    assert answered.returncode == 0, answered.stderr
    [answer] = json.loads(answered.stdout)
    assert answer["prompt"] == "07+35="


def test_layouts_with_experts_and_pipelines_equal_one_process(everything: FreshEnvironment) -> None:
    narrow = ("--dtype", "float64", "--micro-batches", "1")
    for model, layouts in (("qwen3", ("p2",)), ("qwen3_moe", ("d2e2",))):
        asked = [word for layout in layouts for word in ("--layout", layout)]
        done = everything.archon("verify", model, *asked, *narrow, "--json", "-")
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_promise_is_checked_as_the_readme_says(everything: FreshEnvironment) -> None:
    done = everything.archon("verify", "qwen3", "--layout", "d2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "d2" in done.stdout
