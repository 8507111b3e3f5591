"""A reward model of a run: its training, its scores of completions, and checkpoints that are none."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from archon_core.contracts.engine_config import EngineConfig
from archon_core.contracts.rollout import Completion
from archon_core.errors import ConfigError
from archon_rl.datasets.placed_record import PlacedRecord
from archon_rl.text_encoding import TextEncoder
from archon_rl.tokenization import characters_tokenizer, load_tokenizer
from archon_rl.trainer.rollout_batch import Rollout
from archon_train.run.metrics import read_metrics

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("archon_models_qwen", "archon_rollout")),
    reason="archon-models-qwen or archon-rollout is not installed",
)

MODEL = """
    model_type: qwen3
    hidden_size: 16
    intermediate_size: 32
    num_hidden_layers: 1
    num_attention_heads: 2
    num_key_value_heads: 1
    head_dim: 8
    max_position_embeddings: 32
"""
REWARD = f"""
experiment_name: test
trial_name: rw
algorithm: rw
cluster: {{n_gpus_per_node: 1, fileroot: ROOT}}
tokenizer: {{kind: characters}}
data: {{dataset: jsonl, path: ROOT/pairs.jsonl, prompt_key: prompt, batch_size: 8}}
actor:
  backend: archon:d1
  dtype: float32
  optimizer: {{lr: 0.01}}
  archon: {{enable_compile: false}}
  model_config:{MODEL}
trainer: {{max_steps: 4, verify_export: true}}
"""
POLICY = f"""
experiment_name: test
trial_name: grpo
algorithm: grpo
reward: model
reward_model: {{path: ROOT/test/rw/export, dtype: float32, mb_spec: {{n_mbs: 2}}, archon: {{enable_compile: false}}}}
cluster: {{n_gpus_per_node: 1, fileroot: ROOT}}
tokenizer: {{kind: pretrained}}
tokenizer_path: ROOT/test/rw/export
data: {{dataset: jsonl, path: ROOT/problems.jsonl, batch_size: 4, validation_size: 2}}
actor:
  backend: archon:d1
  dtype: float32
  kl_ctl: 0.0
  optimizer: {{lr: 0.01}}
  archon: {{enable_compile: false}}
  model_config:{MODEL}
rollout: {{backend: local}}
gconfig: {{n_samples: 2, max_new_tokens: 3}}
trainer: {{max_steps: 1}}
"""


@pytest.fixture
def trained(run):
    """A reward model in the export folder of a run; starts further runs."""
    sums = [(a, b) for a in range(4) for b in range(4)]
    pairs = [{"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(a + b + 1)} for a, b in sums]
    problems = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a, b in sums]
    for name, records in (("pairs", pairs), ("problems", problems)):
        (run.root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    folder = run(text=REWARD)
    assert "Export verified: scores differ from transformers' by" in (folder.path / "output.txt").read_text()
    return run


def recorded_scores(monkeypatch) -> list:
    """The scores of all rollouts of later runs."""
    from archon_rl.trainer.reward_model import ModelScorer

    found = []
    call = ModelScorer.__call__

    def recording(self, *arguments, **options):
        found.append(call(self, *arguments, **options))
        return found[-1]

    monkeypatch.setattr(ModelScorer, "__call__", recording)
    return found


def assert_scores_of_transformers(found, folder, encode) -> None:
    """``encode`` gives the reward model's token ids of a prompt and a completion."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert model.config.num_labels == 1
    for scores in found:
        rows = zip(scores.rollout.prompts, scores.rollout.completions, scores.outcomes, strict=True)
        for prompt, completions, outcomes in rows:
            for completion, outcome in zip(completions, outcomes, strict=True):
                ids = torch.tensor([encode(prompt, completion)])
                with torch.no_grad():
                    expected = float(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0])
                assert outcome.value == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_completions_get_the_scores_that_transformers_computes(trained, monkeypatch):
    found = recorded_scores(monkeypatch)
    folder = trained(text=POLICY)
    assert len(found) == 3, "before training, a step, and after it"
    export = trained.root / "test/rw/export"
    assert_scores_of_transformers(found, export, lambda prompt, completion: [*prompt, *completion.token_ids])
    [step] = [row for row in read_metrics(folder.metrics) if "loss" in row]
    assert step["reward"] == pytest.approx(float(found[1].values.mean()), rel=1e-5)
    assert step["reward_std"] > 0


def test_texts_are_encoded_again_for_a_model_with_another_tokenizer(trained, monkeypatch):
    trained("tokenizer.kind=bpe", "tokenizer.vocab_size=270", "trial_name=bpe", text=REWARD)
    export, found = trained.root / "test/bpe/export", recorded_scores(monkeypatch)
    trained(f"reward_model.path={export}", text=POLICY)
    [decision] = [d for d in trained.context.decisions if d.option == "reward_model"]
    assert decision.effective == "texts, encoded with the reward model's tokenizer"
    policy, other = load_tokenizer(trained.root / "test/rw/export"), load_tokenizer(export)

    def encode(prompt, completion):
        texts = [policy.decode(ids, skip_special_tokens=True) for ids in (prompt, completion.token_ids)]
        end = [other.eos_token_id] if completion.stop_reason == "stop" else []
        return [*other.encode(texts[0]), *other.encode(texts[1], add_special_tokens=False), *end]

    assert_scores_of_transformers(found, export, encode)


def test_text_that_the_other_tokenizer_cannot_encode_costs_its_own_prompt():
    from archon_rl.trainer.reward_model import RewardModel

    encoder = TextEncoder(characters_tokenizer(["0123456789+="]), "prompt", None)
    prompts = ("1+1=", "9+9=", "2+2=")
    records = tuple(PlacedRecord({"prompt": text}, f"f:{n}") for n, text in enumerate(prompts))
    completions = tuple((completion_of(encoder, text),) for text in ("2", "2", "9"))
    model = object.__new__(RewardModel)
    model._encoder, model._tokenizer = encoder, characters_tokenizer(["01234+="])
    model._section = EngineConfig(backend="archon:d1", model_config={"model_type": "qwen3"})
    [good], [prompt], [completion] = model._sequences(Rollout(records, ((1,),) * 3, completions))
    assert model._tokenizer.decode(good) == "<bos>1+1=2<eos>"
    assert prompt.error.startswith("f:1: ")
    assert completion.error.startswith("f:2: ")
    assert prompt.cause == completion.cause


def completion_of(encoder: TextEncoder, text: str) -> Completion:
    ids = tuple(encoder.tokenizer.encode(text, add_special_tokens=False))
    return Completion(ids, (0.0,) * len(ids), (0,) * len(ids), "stop")


def test_only_a_checkpoint_with_one_score_is_a_reward_model(trained):
    trained("reward=arithmetic", "reward_model=null", "trial_name=policy", text=POLICY)
    other = trained.root / "test/policy/export"
    with pytest.raises(ConfigError, match=r"found a checkpoint of Qwen3ForCausalLM; allowed are models for sequence"):
        trained(f"reward_model.path={other}", "trial_name=wrong", text=POLICY)
    with pytest.raises(ConfigError, match=r"reward_model\.path: found none, and reward 'model' needs a checkpoint"):
        trained("reward_model=null", "trial_name=none", text=POLICY)


def test_another_reward_model_is_noticed_when_a_run_resumes(trained):
    trained(text=POLICY)
    trained("trial_name=rw2", "seed=2", text=REWARD)
    with pytest.raises(ConfigError, match=r"reward: found reward model 'export' .* the run started with reward model"):
        trained(
            "trainer.resume=true",
            "trainer.max_steps=2",
            f"reward_model.path={trained.root / 'test/rw2/export'}",
            text=POLICY,
        )
