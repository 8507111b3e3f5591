"""``pip install archon-core`` and nothing else: whatever is missing is named, with the command that installs it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from fresh_environment import FreshEnvironment
from programs import IMPORT_ALL

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
        (("train", "run.yaml"), "archon-train"),
        (("convert", "runs/demo", "out", "--to", "hf"), "archon-engine"),
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
    # Its modules about tensors need torch, which archon-engine and the extra "tensors" bring.
    done = core.python("-c", IMPORT_ALL, "archon_core", "torch")
    assert done.returncode == 0, done.stderr
    assert core.pip("check").returncode == 0


@pytest.mark.parametrize("library", ["torch", "transformers", "safetensors", "numpy"])
def test_none_of_the_large_libraries_comes_with_it(core: FreshEnvironment, library: str) -> None:
    done = core.python("-c", f"import {library}")
    assert f"No module named '{library}'" in done.stderr


def test_layouts_are_read_and_explained(core: FreshEnvironment) -> None:
    program = (
        "from archon_core import parse_layout; print(parse_layout('archon:(attn:d1p4t2c2|ffn:d1p4t1e4)').world_size)"
    )
    done = core.python("-c", program)
    assert (done.returncode, done.stdout) == (0, "16\n"), done.stderr


def test_help_lists_the_commands_that_packages_would_add(core: FreshEnvironment) -> None:
    done = core.archon("--help")
    assert done.returncode == 0
    words = " ".join(done.stdout.split())
    commands = {
        "train": "archon-train",
        "convert": "archon-engine",
        "verify": "archon-testing",
        "pipeline": "archon-pipeline",
        "new": "archon-scaffold",
    }
    for command, package in commands.items():
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
    assert "failure" not in doctor.stdout
    assert re.search(r"note +torch +not installed; no installed package needs it", doctor.stdout)
    assert "none but core's own" in doctor.stdout
    assert "pip install archon-models-qwen" in doctor.stdout
