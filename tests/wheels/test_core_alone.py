"""``pip install archon-core`` and nothing else: whatever is missing is named, with the command that installs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fresh_environment import FreshEnvironment
from programs import IMPORT_ALL

ROOT = Path(__file__).resolve().parents[2]

USER_ERROR = 2


@pytest.fixture(scope="module")
def core(make_fresh: Callable[..., FreshEnvironment]) -> FreshEnvironment:
    return make_fresh("archon-core")


@pytest.mark.parametrize(
    ("command", "package"),
    [
        (("verify", "qwen3", "--layout", "d2"), "archon-testing"),
        (("pipeline", "show", "ZBV", "--pp", "4"), "archon-pipeline"),
        (("generate", "some/folder", "12+34="), "archon-rollout"),
        (("new", "model", "mine"), "archon-scaffold"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_command_of_another_package_names_it(core: FreshEnvironment, command: tuple[str, ...], package: str) -> None:
    done = core.archon(*command)
    assert done.returncode == USER_ERROR
    assert done.stdout == ""
    assert done.stderr.strip() == (
        f"error: command '{command[0]}': no installed plugin provides it. It is part of {package}: "
        f"pip install {package}"
    )


def test_everything_in_it_imports_with_what_it_declares_to_need(core: FreshEnvironment) -> None:
    done = core.python("-c", IMPORT_ALL, "archon_core")
    assert done.returncode == 0, done.stderr
    assert core.pip("check").returncode == 0


def test_help_lists_the_commands_that_packages_would_add(core: FreshEnvironment) -> None:
    done = core.archon("--help")
    assert done.returncode == 0
    words = " ".join(done.stdout.split())
    for command, package in (("verify", "archon-testing"), ("pipeline", "archon-pipeline"), ("new", "archon-scaffold")):
        assert f"{command} (pip install {package})" in words


def test_a_misspelt_command_of_another_package_is_recognised(core: FreshEnvironment) -> None:
    done = core.archon("verfy", "qwen3")
    assert done.returncode == USER_ERROR
    assert "did you mean 'verify'? That is part of archon-testing: pip install archon-testing" in done.stderr


@pytest.mark.parametrize(("command", "package"), [("models", "archon-models-qwen"), ("schedules", "archon-pipeline")])
def test_an_empty_listing_says_what_would_fill_it(core: FreshEnvironment, command: str, package: str) -> None:
    done = core.archon(command)
    assert done.returncode == 0
    assert f"pip install {package}" in done.stdout
    empty = core.archon(command, "--json")
    assert json.loads(empty.stdout) == []


def test_plugins_and_doctor_say_that_there_is_core_alone(core: FreshEnvironment) -> None:
    listed = core.archon("plugins")
    assert listed.returncode == 0
    for package in ("archon-models-qwen", "archon-rl", "archon-rollout"):
        assert f"pip install {package}" in listed.stdout
    doctor = core.archon("doctor")
    assert doctor.returncode == 0, doctor.stdout
    assert "none but core's own" in doctor.stdout
    assert "pip install archon-models-qwen" in doctor.stdout


@pytest.mark.parametrize(
    ("example", "overrides", "packages"),
    [
        ("sft_jsonl", ("data.path=x.jsonl",), ("archon-models-qwen", "archon-rl")),
        ("grpo_arithmetic", (), ("archon-models-qwen", "archon-rl", "archon-rollout")),
        ("grpo_arithmetic_moe", (), ("archon-models-qwen", "archon-moe", "archon-rl", "archon-rollout")),
        (
            "grpo_arithmetic",
            ("actor.backend=archon:p2",),
            ("archon-models-qwen", "archon-pipeline", "archon-rl", "archon-rollout"),
        ),
    ],
    ids=("sft", "grpo", "experts", "pipeline"),
)
def test_training_names_every_missing_package_at_once(
    core: FreshEnvironment, example: str, overrides: tuple[str, ...], packages: tuple[str, ...]
) -> None:
    path = str(ROOT / "examples" / f"{example}.yaml")
    done = core.archon("train", path, *overrides)
    assert done.returncode == USER_ERROR
    assert f"  pip install {' '.join(packages)}\n" in done.stderr
    for package in packages:
        assert f"- {package}, which is not installed; for " in done.stderr
    dry = core.archon("train", path, *overrides, "--dry-run")
    assert f"  pip install {' '.join(packages)}\n" in dry.stdout
    assert list(core.work.iterdir()) == [], "nothing is written by a run that cannot start"


def test_an_option_of_a_package_that_is_not_installed_names_it(core: FreshEnvironment) -> None:
    path = str(ROOT / "examples" / "sft_jsonl.yaml")
    done = core.archon("train", path, "actor.archon.moe_aux_loss=sequence", "data.path=x.jsonl")
    assert done.returncode == USER_ERROR
    assert "archon-moe, which is not installed; for actor.archon.moe_aux_loss" in done.stderr


def test_converting_needs_no_other_package(core: FreshEnvironment) -> None:
    done = core.archon("convert", "nowhere", "out", "--to", "hf")
    assert done.returncode == USER_ERROR
    assert "nowhere: found no training state there" in done.stderr
    assert "pip install" not in done.stderr
