"""Small GRPO runs in float64, by the command ``archon train`` in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from archon_core.cli.main import main

SMALL = """
experiment_name: small
trial_name: run
algorithm: grpo
reward: arithmetic
seed: 3
cluster: {n_gpus_per_node: 2, fileroot: ROOT}
tokenizer: {kind: characters}
data: {dataset: arithmetic, batch_size: 4}
actor:
  backend: archon:d1
  dtype: float64
  model_config:
    model_type: qwen3
    hidden_size: 16
    intermediate_size: 32
    num_hidden_layers: 2
    num_attention_heads: 2
    num_key_value_heads: 1
    head_dim: 8
    max_position_embeddings: 64
  ppo_n_minibatches: 2
  kl_ctl: 0.0
  optimizer: {lr: 0.003}
  archon: {enable_compile: false}
warm_start: {lr: 0.01}
gconfig: {n_samples: 4}
trainer: {eval_every: 0, eval_before_train: false, save_every: 0}
"""


def small_run(changes: str) -> str:
    """``SMALL`` with changes to some of its options, as YAML. ``ROOT`` stands for the folder of the run."""
    return OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.create(SMALL), OmegaConf.create(changes)))


def train(configuration: str, folder: Path, *options: str) -> Path:
    """Train to the end. Returns the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(configuration.replace("ROOT", str(folder)), encoding="utf-8")
    train_file(file, *options)
    return folder / "small/run"


def train_file(file: Path, *options: str) -> None:
    """Train to the end by a configuration file."""
    with pytest.raises(SystemExit) as end:
        main(["train", str(file), *options])
    assert not end.value.code
