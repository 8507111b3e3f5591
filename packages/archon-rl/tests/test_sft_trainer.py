"""Supervised fine-tuning on stand-in engines, and on the real ones where they are installed."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from bigram_engine import BigramEngine

from archon_core.contracts.batch import Batch
from archon_core.errors import ConfigError, TrainingError
from archon_rl.losses.objective import Objective
from archon_rl.losses.supervised import NegativeLogLikelihood
from archon_rl.text_encoding import TextEncoder
from archon_rl.tokenization import characters_tokenizer, load_tokenizer
from archon_rl.trainer.evaluation import evaluate_loss
from archon_rl.trainer.export_check import verify_export
from archon_train.run.metrics import read_metrics

CONFIGURATION = """
experiment_name: test
trial_name: trial
algorithm: sft
cluster: {n_gpus_per_node: 1, fileroot: ROOT}
tokenizer: {kind: characters}
data: {dataset: jsonl, path: ROOT/data.jsonl, batch_size: 4, validation_size: 5}
actor:
  backend: bigram:d1
  model_config: {model_type: qwen3}
  optimizer: {lr: 0.05}
trainer: {max_steps: 6, save_every: 3, eval_every: 3}
"""

QWEN = """
experiment_name: test
trial_name: trial
algorithm: sft
cluster: {n_gpus_per_node: 1, fileroot: ROOT}
tokenizer: {kind: bpe, vocab_size: 300}
data: {dataset: jsonl, path: ROOT/data.jsonl, batch_size: 4, validation_size: 5}
actor:
  backend: archon:d1
  dtype: float32
  model_config:
    model_type: qwen3
    hidden_size: 16
    intermediate_size: 32
    num_hidden_layers: 2
    num_attention_heads: 2
    num_key_value_heads: 1
    head_dim: 8
  optimizer: {lr: 0.01, lr_scheduler_type: cosine}
  archon: {enable_compile: false}
trainer: {max_steps: 6, save_every: 3, eval_every: 3, verify_export: true}
"""

needs_qwen = pytest.mark.skipif(
    importlib.util.find_spec("archon_models_qwen") is None, reason="archon-models-qwen is not installed"
)


@pytest.fixture
def sft(run):
    """A run over thirty records in a file."""
    records = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(6) for b in range(5)]
    (run.root / "data.jsonl").write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return run


def numbers(folder) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if not name.startswith(("time/", "memory/", "tokens_per_second"))}
        for row in read_metrics(folder.metrics)
    ]


def test_the_loss_falls_on_held_out_records_too(sft):
    folder = sft("trainer.max_steps=30", "trainer.eval_every=30", text=CONFIGURATION)
    written = numbers(folder)
    assert written[-1]["loss"] < written[1]["loss"] - 1
    assert written[-1]["eval/loss"] < written[0]["eval/loss"] - 1
    assert written[1]["loss"] == pytest.approx(written[1]["cross_entropy"])


def test_a_resumed_run_continues_with_the_same_numbers(sft):
    whole = sft("trial_name=whole", text=CONFIGURATION)
    with pytest.raises(KeyboardInterrupt):
        sft("trial_name=parts", text=CONFIGURATION, stop_after=3)
    parts = sft("trial_name=parts", "trainer.resume=true", text=CONFIGURATION)
    assert numbers(parts) == numbers(whole)
    torch.testing.assert_close(torch.load(parts.export / "table.pt"), torch.load(whole.export / "table.pt"))


def test_the_learning_rate_schedule_knows_the_steps_of_all_epochs(sft, monkeypatch):
    totals = []
    initialize = BigramEngine.initialize
    monkeypatch.setattr(BigramEngine, "initialize", lambda self: (totals.append(self.total_steps), initialize(self)))
    sft("trainer.max_steps=null", "trainer.max_epochs=3", text=CONFIGURATION)
    assert totals == [3 * 25 // 4]


def test_a_data_set_without_a_path_says_how_to_give_one(sft):
    with pytest.raises(ConfigError, match=r"data\.path: found none, and data set 'jsonl' needs one; add data\.path="):
        sft("data.path=null", text=CONFIGURATION)


def test_the_held_out_loss_does_not_depend_on_the_batch_size(sft):
    tokenizer = characters_tokenizer(["0123456789+="])
    encoder = TextEncoder(tokenizer, "question", "answer")
    records = [{"question": f"{a}+{a}=", "answer": str(a + a)} for a in range(9)]
    config = sft.config("actor.model_config.vocab_size=64", text=CONFIGURATION).actor
    engine = BigramEngine(config, role="actor", layout=None, seed=1, total_steps=None)
    engine.initialize()
    objective = Objective((NegativeLogLikelihood(),))
    values = [evaluate_loss(engine, encoder, records, objective, batch_size=size)["eval/loss"] for size in (1, 2, 4, 9)]
    assert values == pytest.approx([values[0]] * 4, rel=1e-12)
    assert evaluate_loss(engine, encoder, records, objective, batch_size=2, limit=3) != values[0]


@needs_qwen
def test_a_real_model_resumes_exactly_and_its_export_is_what_transformers_computes(sft):
    whole = sft("trial_name=whole", text=QWEN)
    with pytest.raises(KeyboardInterrupt):
        sft("trial_name=parts", text=QWEN, stop_after=3)
    parts = sft("trial_name=parts", "trainer.resume=true", text=QWEN)
    assert numbers(parts) == numbers(whole)
    assert (parts.export / "model.safetensors").read_bytes() == (whole.export / "model.safetensors").read_bytes()
    assert "Export verified" in (whole.path / "output.txt").read_text()
    tokenizer = load_tokenizer(whole.export)
    assert tokenizer.decode(tokenizer.encode("1+2="), skip_special_tokens=True) == "1+2="
    config = json.loads((whole.export / "config.json").read_text())
    assert config["eos_token_id"] == tokenizer.eos_token_id
    assert config["vocab_size"] == 320


class Constant:
    """An engine whose logits are off by a share of the largest one."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def forward_batch(self, batch, request):
        return {"logits": self.logits}


def test_an_export_that_computes_something_else_is_an_error(monkeypatch, tmp_path):
    theirs = torch.tensor([[2.0, -1.0], [0.5, 1.0]])
    monkeypatch.setattr("archon_rl.trainer.export_check._transformers_logits", lambda export, batch, dtype: theirs)
    batch = Batch.from_sequences([[0, 1]])
    assert verify_export(Constant(theirs + 1e-5), tmp_path, batch) == pytest.approx(5e-6, rel=0.1)
    with pytest.raises(
        TrainingError, match=r"differ from the engine's by 5\.00e-04 of the largest logit; allowed is 0\.0001"
    ):
        verify_export(Constant(theirs + 1e-3), tmp_path, batch)
    with pytest.raises(TrainingError, match="differ from the engine's by nan"):
        verify_export(Constant(theirs * torch.nan), tmp_path, batch)
