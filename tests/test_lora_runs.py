"""Whole runs with LoRA: the reference is the actor without its adapters, with the numbers of a separate model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from archon_core.cli.main import main
from archon_testing.worlds import run_world
from archon_train.run.metrics import read_metrics

sys.path.insert(0, str(Path(__file__).parent))

from trained_runs import train

CLOSE = 1e-9
_OF_A_STEP = ("time/", "memory/", "tokens_per_second")
MEASURED = (*_OF_A_STEP, *(f"warm_start/{name}" for name in _OF_A_STEP))
GRPO = """
experiment_name: lora
seed: 1
algorithm: grpo
reward: arithmetic
tokenizer: {kind: characters}
data: {dataset: arithmetic, batch_size: 6, arithmetic: {max_operand: 4}}
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
    tie_word_embeddings: true
  use_lora: true
  lora_rank: 2
  lora_alpha: 4
  ppo_n_minibatches: 2
  kl_ctl: 0.1
  kl_loss_coef: 0.2
  temperature: 0.8
  optimizer: {lr: 0.02, lr_scheduler_type: constant, eps: 1.0e-3} # AdamW amplifies rounding of tiny gradients
  archon: {enable_compile: false}
ref: {}
warm_start: {steps: 10, lr: 0.01}
gconfig: {n_samples: 4, max_new_tokens: 3, temperature: 0.8}
trainer: {max_steps: 3, save_every: 0, eval_every: 0, eval_before_train: false}
"""
SEPARATE = ("ref.backend=archon:t2", "ref.dtype=float64", "ref.archon.enable_compile=false")


@pytest.fixture(scope="module")
def separate(tmp_path_factory):
    """A configuration file, and the folder of a run with a second model as its reference."""
    root = tmp_path_factory.mktemp("runs")
    file = root / "config.yaml"
    file.write_text(f"{GRPO}cluster: {{fileroot: {root}, n_gpus_per_node: 2}}\n")
    run_world(train, 2, (file, "d2", "separate", SEPARATE), time_limit=120)
    return file, root / "lora" / "separate"


@pytest.mark.parametrize(("layout", "n_ranks"), [("d1", 1), ("p2", 2), pytest.param("d2", 2, marks=pytest.mark.wide)])
def test_the_actor_without_its_adapters_is_the_reference_to_the_last_digit(separate, layout, n_ranks):
    file, expected = separate
    run_world(train, n_ranks, (file, layout, f"shared {layout}"), time_limit=120)
    found = expected.parent / f"shared {layout}"
    for row, other in zip(rows(found), rows(expected), strict=True):
        assert row == pytest.approx(other, rel=CLOSE, abs=CLOSE)
    assert rows(found)[-1]["rollout_kl_ref"] > 1e-6
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        weights, others = (load_file(folder / "export" / name) for folder in (found, expected))
        assert weights.keys() == others.keys()
        for key, weight in weights.items():
            torch.testing.assert_close(weight, others[key], rtol=0, atol=CLOSE * float(others[key].abs().max()))


def rows(folder):
    return [
        {name: value for name, value in row.items() if not name.startswith(MEASURED)}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.mark.parametrize(
    ("options", "is_shared"),
    [
        ((), True),
        (("ref.backend=archon:d1", "ref.scheduling_strategy={type: colocation, target: actor}"), True),
        (SEPARATE[:1], False),
        (("ref.path=/elsewhere",), False),
        (("actor.use_lora=false",), False),
    ],
)
def test_a_dry_run_says_whether_the_reference_is_the_actor(separate, capsys, options, is_shared):
    with pytest.raises(SystemExit):
        main(["train", str(separate[0]), "--dry-run", "--json", *options])
    assert ('"the actor without its adapters"' in capsys.readouterr().out) == is_shared
