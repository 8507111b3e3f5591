"""``pip install archon-train``: a run and a dry run name every package that they lack, at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fresh_environment import FreshEnvironment

ROOT = Path(__file__).resolve().parents[2]

USER_ERROR = 2


@pytest.fixture(scope="module")
def bare(make_fresh: Callable[..., FreshEnvironment]) -> FreshEnvironment:
    """Core, archon-engine and archon-train, and no plugin."""
    return make_fresh("archon-train")


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
    bare: FreshEnvironment, example: str, overrides: tuple[str, ...], packages: tuple[str, ...]
) -> None:
    path = str(ROOT / "examples" / f"{example}.yaml")
    done = bare.archon("train", path, *overrides)
    assert done.returncode == USER_ERROR
    assert f"  pip install {' '.join(packages)}\n" in done.stderr
    for package in packages:
        assert f"- {package}, which is not installed; for " in done.stderr
    dry = bare.archon("train", path, *overrides, "--dry-run")
    assert f"  pip install {' '.join(packages)}\n" in dry.stdout
    assert list(bare.work.iterdir()) == [], "nothing is written by a run that cannot start"


def test_an_option_of_a_package_that_is_not_installed_names_it(bare: FreshEnvironment) -> None:
    path = str(ROOT / "examples" / "sft_jsonl.yaml")
    done = bare.archon("train", path, "actor.archon.moe_aux_loss=sequence", "data.path=x.jsonl")
    assert done.returncode == USER_ERROR
    assert "archon-moe, which is not installed; for actor.archon.moe_aux_loss" in done.stderr


def test_checkpoints_are_converted_without_a_plugin(bare: FreshEnvironment) -> None:
    done = bare.archon("convert", "nowhere", "out", "--to", "hf")
    assert done.returncode == USER_ERROR
    assert "nowhere: found no training state" in done.stderr
    assert "pip install" not in done.stderr
