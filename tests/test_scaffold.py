"""Packages that ``archon new`` writes, beside the packages that their own tests need: each passes its tests as written.

The reward is in the ordinary run; models run as ``wide``, all in one pytest process. tests/wheels installs a package of
every kind, also a schedule and an algorithm, and runs its tests. Together the families have most kinds of norms,
projections, rotations and experts; what a family adds to Llama decides the layouts on which it is compared with one
process. The tests of archon-scaffold compare all families with transformers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from archon_core.cli.main import main

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


class Family(NamedTuple):
    """A model type.

    Attributes:
        layouts: on which its package is compared with one process.
        entries: of its configuration.
    """

    layouts: tuple[str, ...]
    entries: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it


FAMILIES = {
    "llama": Family(
        ("p2",),
        {"num_key_value_heads": 8, "max_position_embeddings": 131072, "rope_parameters": LLAMA3_ROPE},
    ),
    # Softcaps and windows in every second layer.
    "gemma2": Family(("c2",), {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}),
    # LayerNorm, and a feed-forward block without a gate.
    "starcoder2": Family(("t2",), {"mlp_type": "default", "norm_type": "layer_norm", "residual_dropout": 0.1}),
    # Norms over all heads, which tensor ranks share; experts.
    "olmoe": Family(("t2",)),
    # Attention and feed-forward block in parallel, and layers without rotation.
    "cohere2": Family(("t2",)),
    # Rotary parameters per layer type; cut tokens as in gemma2.
    "gemma3_text": Family(()),
    # Fused projections, and a rotation of neighbouring elements, of a part of each head.
    "glm4": Family(("t2",)),
    # Dense layers first, shared experts, and a choice bias.
    "glm4_moe": Family(("d2e2",), {"head_dim": 128}),
    # Latent attention, with low-rank queries and without.
    "youtu": Family(("t2",)),
    "glm4_moe_lite": Family(("c2",), {"q_lora_rank": None, "attention_bias": True}),
}


def write(kind: str, name: str, folder: Path, *options: str) -> Path:
    """``archon new``, and the package's folder."""
    with pytest.raises(SystemExit) as ended:
        main(["new", kind, name, *options, "--dir", str(folder)])
    assert not ended.value.code
    return folder / name


def register(package: Path) -> Path:
    """The package's sources, with its entry point beside them.

    Its metadata is what an installer would write; tests/wheels installs one for real.
    """
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    site = package / "src"
    info = site / f"{project['name'].replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    [(name, module)] = project["entry-points"]["archon"].items()
    (info / "entry_points.txt").write_text(f"[archon]\n{name} = {module}\n")
    return site


def run_tests(packages: Iterable[Path], folder: Path, *options: str) -> None:
    """The tests of packages as they stand, in one process."""
    sites = [str(register(package)) for package in packages]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sites, os.environ.get("PYTHONPATH", "")])}
    # Packages have test files of the same names.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--import-mode=importlib", *options]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.wide
def test_models_of_all_families_pass_their_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packages, elsewhere = [], []
    for model_type, family in FAMILIES.items():
        configuration = tmp_path / "configurations" / model_type
        configuration.mkdir(parents=True)
        entries = {"model_type": model_type, **family.entries}
        (configuration / "config.json").write_text(json.dumps(entries), encoding="utf-8")
        name = f"demo-{model_type}".replace("_", "-")
        packages.append(write("model", name, tmp_path, "--from-hf", str(configuration)))
        for layout in {"d2", "t2", "c2", "p2", "d2e2"} - {*family.layouts}:
            test = f"TestModel::test_a_layout_gives_the_numbers_of_one_process[{layout}]"
            elsewhere += ["--deselect", f"{name}/tests/test_model.py::{test}"]
    assert "gap: " not in capsys.readouterr().err
    run_tests(packages, tmp_path, *elsewhere)


def test_a_reward_passes_its_tests(tmp_path: Path) -> None:
    run_tests([write("reward", "demo-reward", tmp_path)], tmp_path)
