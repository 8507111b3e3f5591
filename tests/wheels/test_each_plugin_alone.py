"""Every plugin with nothing but what it needs: it loads, everything in it imports, and what it lacks is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fresh_environment import FreshEnvironment
from programs import IMPORT_ALL
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from release_imports import HOSTS
from workspace import CORE, find_packages

ROOT = Path(__file__).resolve().parents[2]

WHAT_IS_LACKING = {
    "archon-engine": (("models",), "pip install archon-models-qwen"),
    "archon-models-qwen": (("verify", "qwen3"), "pip install archon-testing"),
    "archon-moe": (("models",), "pip install archon-models-qwen"),
    "archon-pipeline": (("verify", "qwen3"), "pip install archon-testing"),
    "archon-rl": (
        ("train", str(ROOT / "examples/grpo_arithmetic.yaml")),
        "pip install archon-models-qwen archon-rollout",
    ),
    "archon-rollout": (("generate", "model", "1+1="), "pip install archon-models-qwen"),
    "archon-testing": (("verify", "qwen3", "--layout", "d2"), "pip install archon-models-qwen"),
    "archon-train": (
        ("train", str(ROOT / "examples/grpo_arithmetic.yaml")),
        "pip install archon-models-qwen archon-rl archon-rollout",
    ),
}
"""Package -> something that it cannot do alone, and the message. Packages that lack nothing are not listed."""


@pytest.fixture(scope="module", params=[name for name in find_packages() if name != CORE])
def alone(request: pytest.FixtureRequest, make_fresh: Callable[..., FreshEnvironment]) -> tuple[str, FreshEnvironment]:
    return request.param, make_fresh(request.param)


def needed_packages(name: str) -> set[str]:
    """A package of the workspace, and the ones that it needs, directly or not."""
    packages = find_packages()
    own = {requirement.name for requirement in packages[name].requirements} & set(packages)
    return {name}.union(*map(needed_packages, own))


def test_it_is_loaded_without_a_problem_beside_what_it_needs_and_nothing_else(
    alone: tuple[str, FreshEnvironment],
) -> None:
    name, fresh = alone
    listed = fresh.archon("plugins", "--json")
    assert listed.returncode == 0, listed.stderr
    known = json.loads(listed.stdout)
    assert known["problems"] == []
    found = [(plugin["distribution"], plugin["status"], plugin["problems"]) for plugin in known["plugins"]]
    assert found[0][0] == CORE
    assert sorted(found) == [(package, "loaded", []) for package in sorted(needed_packages(name))]
    specs = next(plugin["specs"] for plugin in known["plugins"] if plugin["distribution"] == name)
    assert specs, "it provides something"
    for command in (spec["name"] for spec in specs if spec["kind"] == "command"):
        help_of = fresh.archon(command, "--help")
        assert help_of.returncode == 0, help_of.stderr
        assert f"Usage: archon {command}" in help_of.stdout
    doctor = fresh.archon("doctor")
    assert doctor.returncode == 0, doctor.stdout


def test_all_that_is_in_it_and_all_that_it_names_imports(alone: tuple[str, FreshEnvironment]) -> None:
    name, fresh = alone
    package = find_packages()[name]
    extras = [requirement.name for extra in package.optional_requirements.values() for requirement in extra]
    extras += [module for module, owner in HOSTS.items() if owner == name]
    done = fresh.python("-W", "error::ImportWarning", "-c", IMPORT_ALL, package.import_name, *extras)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1


@pytest.mark.parametrize("alone", WHAT_IS_LACKING, indirect=True)
def test_what_it_lacks_is_named(alone: tuple[str, FreshEnvironment]) -> None:
    name, fresh = alone
    model = fresh.work / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    Tokenizer(WordLevel({"1": 0, "?": 1}, "?")).save(str(model / "tokenizer.json"))
    command, expected = WHAT_IS_LACKING[name]
    done = fresh.archon(*command)
    assert expected in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_pip_finds_nothing_missing(alone: tuple[str, FreshEnvironment]) -> None:
    _, fresh = alone
    done = fresh.pip("check")
    assert done.returncode == 0, done.stdout


def test_a_dependency_that_no_wheel_declares_is_not_there(alone: tuple[str, FreshEnvironment]) -> None:
    _, fresh = alone
    done = fresh.python("-c", "import hypothesis")
    assert done.returncode == 1
    assert "No module named 'hypothesis'" in done.stderr
    assert str(Path(sys.prefix)) not in fresh.python("-c", "import sys; print(sys.path)").stdout
