"""``pip install archon-models-qwen``: dense models train; experts and pipelines are refused, with what brings them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fresh_environment import FreshEnvironment
from programs import TRAIN

ROOT = Path(__file__).resolve().parents[2]

USER_ERROR = 2


@pytest.fixture(scope="module")
def qwen(make_fresh: Callable[..., FreshEnvironment]) -> FreshEnvironment:
    # pip brings core along, as the bound says.
    return make_fresh("archon-models-qwen")


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_dense_model_trains(qwen: FreshEnvironment, family: str) -> None:
    done = qwen.python("-c", TRAIN, family, "archon:d1")
    assert done.returncode == 0, done.stderr
    losses = [float(line) for line in done.stdout.split()]
    assert len(losses) == 5
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("family", "backend", "package"),
    [("qwen3_moe", "archon:d1", "archon-moe"), ("qwen3", "archon:p2", "archon-pipeline")],
    ids=("experts", "pipeline"),
)
def test_what_needs_another_package_is_refused_by_the_engine_with_its_name(
    qwen: FreshEnvironment, family: str, backend: str, package: str
) -> None:
    done = qwen.python("-c", TRAIN, family, backend)
    assert done.returncode == 1
    assert f"pip install {package}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_that_trains_names_its_package(qwen: FreshEnvironment) -> None:
    done = qwen.archon("train", str(ROOT / "examples" / "sft_jsonl.yaml"))
    assert done.returncode == USER_ERROR
    assert "It is part of archon-train: pip install archon-train" in done.stderr


def test_training_with_a_file_names_what_is_left_to_install(make_fresh: Callable[..., FreshEnvironment]) -> None:
    qwen = make_fresh("archon-models-qwen", "archon-train")
    sft = ("train", str(ROOT / "examples" / "sft_jsonl.yaml"), "data.path=x.jsonl", "cluster.n_gpus_per_node=2")
    for overrides, packages in (
        ((), "archon-rl"),
        (("actor.backend=archon:p2",), "archon-pipeline archon-rl"),
        (("actor.model_config.model_type=qwen3_moe",), "archon-moe archon-rl"),
    ):
        done = qwen.archon(*sft, *overrides)
        assert done.returncode == USER_ERROR
        assert f"  pip install {packages}\n" in done.stderr, done.stderr
        assert "archon-models-qwen" not in done.stderr


def test_with_the_algorithms_a_file_trains(make_fresh: Callable[..., FreshEnvironment]) -> None:
    fresh = make_fresh("archon-models-qwen", "archon-rl")
    lines = [f'{{"question": "{n} and {n}?", "answer": "{2 * n}"}}\n' for n in range(40)]
    (fresh.work / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    small = ["actor.model_config.hidden_size=32", "actor.model_config.head_dim=8", "tokenizer.kind=characters"]
    short = ["data.path=train.jsonl", "data.validation_size=4", "trainer.max_steps=6", "data.batch_size=8"]
    done = fresh.archon("train", str(ROOT / "examples" / "sft_jsonl.yaml"), *short, *small)
    assert done.returncode == 0, done.stderr
    from_hub = fresh.archon(
        "train", str(ROOT / "examples" / "sft_jsonl.yaml"), "data.dataset=hf", "data.path=a/b", "trial_name=hub"
    )
    assert from_hub.returncode == USER_ERROR
    assert "pip install 'archon-rl[datasets]'" in from_hub.stderr
    folder = fresh.work / "runs" / "sft" / "jsonl"
    assert {"config.yaml", "metrics.jsonl", "export", "tensorboard"} <= {path.name for path in folder.iterdir()}
