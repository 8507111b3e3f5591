"""At staleness 0, a collector changes no number: DAPO and PPO train as one process that samples itself.

DAPO is GRPO with dynamic sampling.

Rewards fail for some records, epochs end within steps, and the critic warms up, so that steps leave weights unchanged.
Rewards differ otherwise: Adam would turn the rounding errors of gradients that are 0 into whole steps.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from archon_core.ranks.ranks import Ranks
from archon_rl.trainer import collector_link
from archon_rollout.served import launching
from archon_testing.worlds import run_world
from archon_train.run.metrics import read_metrics

sys.path.insert(0, str(Path(__file__).parent))

from archon_testing.fork_server import ForkServer, install
from trained_runs import train

STEPS = 4
REWARD = """
def score(prompt, completion, record):
    if sum(map(ord, prompt)) % 5 == 0:
        raise ValueError("a record that cannot be scored")
    if sum(map(ord, prompt)) % 4 == 0:
        return 0.5  # the same for every completion: dynamic sampling replaces the record
    return sum(map(ord, completion)) % 97 / 97
"""
CONFIG = """
experiment_name: layouts
trial_name: run
seed: 5
reward: reward_of_layouts:score
cluster: {fileroot: ROOT, n_gpus_per_node: 2}
tokenizer: {kind: characters}
data: {dataset: arithmetic, batch_size: 4, validation_size: 2, arithmetic: {max_operand: 3}}
actor:
  backend: archon:d1
  dtype: float64
  model_config:
    model_type: qwen3
    vocab_size: 64
    hidden_size: 16
    intermediate_size: 32
    num_hidden_layers: 2
    num_attention_heads: 4
    num_key_value_heads: 2
    head_dim: 8
    max_position_embeddings: 64
    initializer_range: 0.3
  ppo_n_minibatches: 2
  optimizer: {lr: 0.01}
  archon: {enable_compile: false}
gconfig: {n_samples: 2, max_new_tokens: 5}
rewards: {processes: 1, max_failed: 0.5}
rollout: {backend: local, setup_timeout: 120, health_check_timeout_seconds: 30}
trainer: {max_steps: 4, eval_every: 0, eval_before_train: false, save_every: 0, verify_export: false}
"""
ALGORITHMS = {
    "dapo": "algorithm: grpo\n",
    "ppo": "algorithm: ppo\n"
    "critic: {dtype: float64, warmup_steps: 2, optimizer: {type: sgd, lr: 0.1}, archon: {enable_compile: false}}\n",
}
OPTIONS = {
    "dapo": ("actor.kl_ctl=0.0", "actor.dynamic_sampling=true", "actor.dynamic_sampling_max_rounds=3"),
    "ppo": ("actor.kl_ctl=0.0",),
}
SERVED = ("rollout.backend=served:d1", "cluster.n_gpus_per_node=4")
EQUAL = ("reward", "reward_std", "reward/failed", "tokens", "selected", "loss", "gradient_norm", "version")
REFILLS = ("sampling_rounds", "prompts", "rejected_prompts", "missing_prompts")


def train_all(root: Path, layouts: tuple[str, ...], options: tuple[str, ...], forks: str | None) -> None:
    """Train with every algorithm in every layout, on the ranks of a world; servers are forks by an address."""
    os.chdir(root)
    if forks is not None and Ranks.of_process_group().is_first:
        install(ForkServer(address=forks), collector_link, launching)
    for layout in layouts:
        for name, sections in ALGORITHMS.items():
            file = root / f"{name}.yaml"
            if not file.exists():
                file.write_text(CONFIG.replace("ROOT", str(root)) + sections, encoding="utf-8")
            train(file, layout, f"{name}-{layout}", (*OPTIONS[name], *options))


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the actor, and of the critic if there is one."""
    exports = sorted(run.glob("export*/model.safetensors"))
    return {f"{file.parent.name}: {name}": w for file in exports for name, w in load_file(file).items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, fork_server_address) -> tuple[Path, Path]:
    """Folders of the runs of one process that samples itself, and of the runs with a collector."""
    folders = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("collected")
    for folder in folders:
        (folder / "reward_of_layouts.py").write_text(REWARD, encoding="utf-8")
    run_world(train_all, 1, (folders[0], ("d1",), (), None), time_limit=300)
    run_world(train_all, 2, (folders[1], ("d2", "t2"), SERVED, fork_server_address), time_limit=600)
    return folders[0] / "layouts", folders[1] / "layouts"


@pytest.mark.wide
@pytest.mark.parametrize("layout", ["d2", "t2"])
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_a_collector_trains_as_one_process_that_samples_itself(runs, name, layout):
    alone, collected = runs[0] / f"{name}-d1", runs[1] / f"{name}-{layout}"
    expected = [row for row in read_metrics(alone / "metrics.jsonl") if "reward" in row]
    found = [row for row in read_metrics(collected / "metrics.jsonl") if "reward" in row]
    assert len(found) == len(expected) == STEPS
    assert any(row["reward/failed"] for row in expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["staleness_max"] == ours["stale_prompts"] == 0
        for metric in (*EQUAL, *(REFILLS if name == "dapo" else ())):
            if metric in theirs:
                assert ours[metric] == pytest.approx(theirs[metric], rel=1e-9, abs=1e-9), metric
    if name == "dapo":
        assert any(row["sampling_rounds"] > 1 for row in expected)
    if name == "ppo":
        assert [row["version"] for row in expected][:2] == [0, 0], "the critic warms up"
    expected_weights = weights(alone)
    assert weights(collected).keys() == expected_weights.keys()
    for place, tensor in weights(collected).items():
        torch.testing.assert_close(tensor, expected_weights[place], rtol=0, atol=1e-9, msg=place)
