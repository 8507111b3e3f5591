"""Packages from outside the repository: a model and a pipeline that work, a plugin that is broken, one too new."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fresh_environment import FreshEnvironment
from plugin_wheels import OUTSIDE_MODEL, OUTSIDE_PIPELINE, build_outside, build_plugin

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

USER_ERROR = 2

BROKEN = """
from archon_core.plugins import RewardSpec, hookimpl
from a_library_that_was_renamed import something

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_rewards():
    return [RewardSpec(name="politeness", target="broken_rewards.plugin:something")]
"""

TOO_NEW = """
from archon_core.plugins import RewardSpec, hookimpl

ARCHON_PLUGIN_API = "1.99"


@hookimpl
def archon_rewards():
    return [RewardSpec(name="brevity", target="newer_rewards.plugin:brevity")]


def brevity(prompt, completion, record):
    return -len(completion)
"""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Path:
    """A folder with Archon's wheels and those from outside."""
    folder, scratch = tmp_path_factory.mktemp("shelf"), tmp_path_factory.mktemp("outside")
    outside = [
        build_outside(OUTSIDE_MODEL, scratch),
        build_outside(OUTSIDE_PIPELINE, scratch),
        build_plugin(scratch, "broken-rewards", BROKEN, version="0.2.1"),
        build_plugin(scratch, "newer-rewards", TOO_NEW, version="3.0.0"),
        build_plugin(scratch, "honest-rewards", TOO_NEW, needs="archon-core>=0.99,<1"),
    ]
    for wheel in [*wheels.glob("*.whl"), *outside]:
        shutil.copy2(wheel, folder)
    return folder


@pytest.fixture(scope="module")
def mixed(make_fresh: Callable[..., FreshEnvironment], shelf: Path) -> FreshEnvironment:
    """A model from outside beside a broken and a too new plugin."""
    return make_fresh("plain-llama[test]", "broken-rewards", "newer-rewards", "archon-rl", find=shelf)


def test_each_plugin_gets_the_status_that_it_deserves(mixed: FreshEnvironment) -> None:
    done = mixed.archon("plugins", "--json")
    assert done.returncode == 0, done.stderr
    plugins = {plugin["distribution"]: plugin for plugin in json.loads(done.stdout)["plugins"]}
    assert {name: plugin["status"] for name, plugin in plugins.items()} == {
        "archon-core": "loaded",
        "archon-engine": "loaded",
        "archon-pipeline": "loaded",
        "archon-rl": "loaded",
        "archon-testing": "loaded",
        "archon-train": "loaded",
        "broken-rewards": "failed",
        "newer-rewards": "incompatible",
        "plain-llama": "loaded",
    }
    assert "No module named 'a_library_that_was_renamed'" in plugins["broken-rewards"]["cause"]
    assert "pip install --upgrade broken-rewards" in plugins["broken-rewards"]["cause"]
    assert "made for plugin API 1.99; archon-core has plugin API 1.0" in plugins["newer-rewards"]["cause"]
    assert plugins["newer-rewards"]["cause"].endswith("pip install --upgrade archon-core")


def test_what_the_broken_and_the_newer_one_would_have_brought_is_explained_by_their_causes(
    mixed: FreshEnvironment,
) -> None:
    arguments = ("train", str(EXAMPLES / "grpo_arithmetic.yaml"), "--dry-run")
    for reward, version, cause in (
        ("politeness", "broken-rewards 0.2.1", "a_library_that_was_renamed"),
        ("brevity", "newer-rewards 3.0.0", "pip install --upgrade archon-core"),
    ):
        done = mixed.archon(*arguments, f"reward={reward}")
        assert done.returncode == USER_ERROR
        assert f"{version} may have it, but is not loaded" in done.stdout
        assert cause in done.stdout


def test_doctor_fails_with_both_and_strict_mode_raises_the_first(mixed: FreshEnvironment) -> None:
    doctor = mixed.archon("doctor")
    assert doctor.returncode == 1
    assert "broken-rewards 0.2.1: failed" in doctor.stdout
    assert "newer-rewards 3.0.0: incompatible" in doctor.stdout
    strict = mixed.archon("models", ARCHON_STRICT_PLUGINS="1")
    assert strict.returncode == USER_ERROR
    assert "plugin 'broken-rewards' of broken-rewards 0.2.1" in strict.stderr
    listed = mixed.archon("--no-plugin", "broken-rewards", "--no-plugin", "newer-rewards", "doctor")
    assert listed.returncode == 0, listed.stdout


def test_the_model_from_outside_is_listed_and_verified_beside_them(mixed: FreshEnvironment) -> None:
    assert "plain_llama" in mixed.archon("models").stdout
    done = mixed.archon("verify", "plain_llama", "--layout", "d2", "--dtype", "float64")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tests_that_its_author_inherits_pass(mixed: FreshEnvironment) -> None:
    tests = mixed.work / "author"
    shutil.copytree(OUTSIDE_MODEL / "tests", tests)
    done = mixed.python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pip_itself_refuses_a_plugin_whose_bound_asks_for_a_newer_core(
    mixed: FreshEnvironment,
) -> None:
    done = mixed.pip_install("honest-rewards")
    assert done.returncode != 0
    assert "archon-core" in done.stderr
    assert "0.99" in done.stderr


def test_a_rival_of_archon_pipeline_gives_the_numbers_of_one_process(
    make_fresh: Callable[..., FreshEnvironment], shelf: Path
) -> None:
    fresh = make_fresh("one-at-a-time", "archon-models-qwen", "archon-testing", find=shelf)
    listed = json.loads(fresh.archon("schedules", "--json").stdout)
    assert [(spec["name"], spec["package"]) for spec in listed] == [("OneAtATime", "one-at-a-time")]
    asked = [word for layout in ("d2p2", "p2t2") for word in ("--layout", f"{layout}-OneAtATime")]
    done = fresh.archon("verify", "qwen3", *asked, "--dtype", "float64")
    assert done.returncode == 0, done.stdout + done.stderr
