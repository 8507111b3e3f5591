"""Packages that ``archon new`` writes, beside the packages that their own tests need: each passes its tests as written.

The reward is in the ordinary run; models, the schedule and the algorithm run as ``wide``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

FAMILIES = {
    "llama": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "rope_parameters": LLAMA3_ROPE},
    "gemma2": {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"},
    "phi3": {},
    "starcoder2": {"mlp_type": "default", "norm_type": "layer_norm", "residual_dropout": 0.1},
    "olmoe": {},
    "smollm3": {},
    "cohere2": {},
    "gemma3_text": {},
    "glm4": {},
    "hunyuan_v1_dense": {"head_dim": 128},
    "glm4_moe": {"head_dim": 128},
}


def write(kind: str, name: str, folder: Path, *options: str) -> Path:
    """``archon new``, and the package's folder."""
    command = [sys.executable, "-m", "archon_core.cli", "new", kind, name, *options, "--dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gap: " not in done.stderr
    return folder / name


def run_tests(package: Path, *options: str) -> None:
    """The package's own tests, as they stand, with its entry point beside those of the environment.

    Its metadata is what an installer would write; tests/wheels installs one for real.
    """
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    site = package / "src"
    info = site / f"{project['name'].replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    [(name, module)] = project["entry-points"]["archon"].items()
    (info / "entry_points.txt").write_text(f"[archon]\n{name} = {module}\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=package,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.wide
def test_a_model_from_a_configuration_passes_its_tests(tmp_path: Path) -> None:
    run_tests(write("model", "demo-llama", tmp_path, "--from-hf", "tests/data/llama-tiny"))


@pytest.mark.wide
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_every_family_passes_its_tests(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **FAMILIES[family]}), encoding="utf-8")
    name = f"demo-{family}".replace("_", "-")
    run_tests(write("model", name, tmp_path, "--from-hf", str(tmp_path)))


def test_a_reward_passes_its_tests(tmp_path: Path) -> None:
    run_tests(write("reward", "demo-reward", tmp_path))


@pytest.mark.wide
@pytest.mark.parametrize("kind", ["schedule", "algorithm"])
def test_a_schedule_and_an_algorithm_pass_their_tests(kind: str, tmp_path: Path) -> None:
    run_tests(write(kind, f"demo-{kind}", tmp_path))
