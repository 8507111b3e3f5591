"""Models with several end tokens: every way of generating ends where ``transformers.generate`` does.

The model is tiny and random. Its end tokens are chosen among what it generates: prompts end at different lengths and at
different tokens, and one prompt ends at none.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from archon_core.cli.main import main
from archon_core.contracts.rollout import GenerationConfig
from archon_rl.tokenization import bpe_tokenizer
from archon_rl.trainer import collecting
from archon_rollout.text_generation import TextGenerator
from archon_train.run.metrics import read_metrics

PROMPTS = ["what is 2 + 3?", "12 times", "a", "seven", "zz top", "the end", "9 8 7", "hello"]
LIMIT = 12
VOCABULARY = 320


def tokenizer() -> PreTrainedTokenizerFast:
    return bpe_tokenizer(PROMPTS, VOCABULARY)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder without any list of end tokens."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def generated(folder: Path, **options) -> list[tuple[int, ...]]:
    """What ``transformers`` generates greedily for each prompt."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer().encode(prompt)])
        row = model.generate(ids, max_new_tokens=LIMIT, do_sample=False, pad_token_id=0, **options)[0, ids.shape[1] :]
        rows.append(tuple(row.tolist()))
    return rows


@pytest.fixture(scope="module")
def ends(weights: Path) -> list[int]:
    """Two tokens that end some of the prompts early, at different places, and leave one to its limit."""
    rows = generated(weights)
    early = [rows[0][2], rows[1][5]]
    lengths = {next((i for i, token in enumerate(row) if token in early), LIMIT) for row in rows}
    assert len(set(early)) == 2
    assert len(lengths) > 2
    assert LIMIT in lengths
    return early


@pytest.fixture
def checkpoint(weights: Path, ends: list[int], tmp_path: Path) -> Callable[[str], Path]:
    """The folder with its end tokens in one of the files."""

    def make(place: str) -> Path:
        folder = Path(shutil.copytree(weights, tmp_path / "model"))
        if place == "generation_config.json":
            (folder / place).write_text(json.dumps({"eos_token_id": ends, "top_k": 20, "do_sample": True}))
        else:
            entries = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**entries, "eos_token_id": ends}))
        return folder

    return make


@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
def test_archon_generate_ends_where_transformers_does(checkpoint, ends, place):
    folder = checkpoint(place)
    theirs = generated(folder)
    completions = TextGenerator.load(str(folder)).complete(
        PROMPTS, GenerationConfig(greedy=True, max_new_tokens=LIMIT), seed=1
    )
    assert [c.completion.token_ids for [c] in completions] == theirs
    assert [c.completion.stop_reason for [c] in completions] == [
        "stop" if row[-1] in ends else "length" for row in theirs
    ]


def configuration(folder: Path, root: Path, **changes) -> list[str]:
    """Arguments of ``archon train`` for one greedy step on the prompts, with an evaluation before and after it."""
    data = root / "data.jsonl"
    data.write_text("".join(json.dumps({"question": p, "answer": "1"}) + "\n" for p in PROMPTS))
    config = {
        "experiment_name": "ends",
        "trial_name": "run",
        "algorithm": "grpo",
        "reward": "arithmetic",
        "cluster": {"fileroot": str(root / "runs")},
        "actor": {"backend": "archon:d1", "path": str(folder), "kl_ctl": 0.0, "ppo_n_minibatches": 1, "adv_norm": {}},
        "rollout": {"backend": "local"},
        "gconfig": {"n_samples": 1, "max_new_tokens": LIMIT, "greedy": True},
        "data": {"path": str(data), "validation_path": str(data), "batch_size": len(PROMPTS), "shuffle": False},
        "trainer": {"max_steps": 1, "save_every": 1},
    }
    for name, value in changes.items():
        config[name] |= value
    (root / "run.yaml").write_text(yaml.safe_dump(config))
    return ["train", str(root / "run.yaml")]


def train(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return int(exit_.value.code or 0)


def test_a_run_samples_evaluates_trains_and_exports_with_the_models_list(checkpoint, ends, tmp_path, monkeypatch):
    folder = checkpoint("generation_config.json")
    theirs = generated(folder)
    batches = []
    build_batch = collecting.build_batch
    monkeypatch.setattr(collecting, "build_batch", lambda *a, **k: batches.append(build_batch(*a, **k)) or batches[-1])
    assert train(configuration(folder, tmp_path)) == 0

    # Trained on: the completion, with its end token once and nothing after it.
    [batch] = batches
    trained = [batch.select([i]) for i in range(len(batch))]
    assert [tuple(row.targets[row.token_fields["loss_mask"]].tolist()) for row in trained] == theirs
    assert batch.sequence_fields["truncated"].tolist() == [row[-1] not in ends for row in theirs]
    run = tmp_path / "runs/ends/run"
    step = read_metrics(run / "metrics.jsonl")[-1]
    assert step["truncated"] == sum(row[-1] not in ends for row in theirs) / len(theirs)
    assert step["completion_tokens"] == sum(map(len, theirs)) / len(theirs)

    [decision] = [
        d for d in json.loads((run / "decisions.json").read_text()) if d["option"] == "gconfig.stop_token_ids"
    ]
    eos = tokenizer().eos_token_id
    assert (decision["requested"], decision["effective"]) == ("[]", str([eos, *ends]))
    assert decision["reason"].startswith(f"{eos} is the tokenizer's end of text; {ends[0]} is eos_token_id in {folder}")

    # Saved: the list, and the tokenizer's end of text, which the file lacked; its other entries are kept.
    saved = json.loads((run / "export/generation_config.json").read_text())
    assert saved == {"eos_token_id": [eos, *ends], "top_k": 20, "do_sample": True}
    assert train(["convert", str(run), str(tmp_path / "converted"), "--to", "hf"]) == 0
    assert json.loads((tmp_path / "converted/generation_config.json").read_text()) == saved


def test_a_list_that_says_the_same_is_exported_to_the_byte(checkpoint, ends, tmp_path):
    folder = checkpoint("generation_config.json")
    text = json.dumps({"eos_token_id": [*ends, tokenizer().eos_token_id], "note": "kept"})
    (folder / "generation_config.json").write_text(text)
    assert train([*configuration(folder, tmp_path), "algorithm=sft", "data.validation_path=null"]) == 0
    run = tmp_path / "runs/ends/run"
    assert (run / "export/generation_config.json").read_text() == text
    assert "generation_config" not in (run / "decisions.json").read_text()


def test_a_model_from_model_config_ends_at_its_own_list_and_exports_it(weights, ends, tmp_path):
    entries = {
        k: v for k, v in json.loads((weights / "config.json").read_text()).items() if k not in ("architectures",)
    }
    arguments = configuration(
        weights,
        tmp_path,
        actor={"path": None, "model_config": {**entries, "eos_token_id": ends}},
    )
    assert train([*arguments, f"tokenizer_path={weights}"]) == 0
    run = tmp_path / "runs/ends/run"
    eos = tokenizer().eos_token_id
    [decision] = [
        d for d in json.loads((run / "decisions.json").read_text()) if d["option"] == "gconfig.stop_token_ids"
    ]
    assert decision["effective"] == str([eos, *ends])
    assert "is eos_token_id in actor.model_config" in decision["reason"]
    loaded = AutoModelForCausalLM.from_pretrained(run / "export")
    assert loaded.generation_config.eos_token_id == [eos, *ends]


def test_a_model_from_scratch_with_a_tokenizer_of_its_own_ignores_the_folders_list(checkpoint, tmp_path):
    folder = checkpoint("generation_config.json")
    arguments = configuration(folder, tmp_path, actor={"init_from_scratch": True})
    assert train([*arguments, "tokenizer.kind=characters"]) == 0
    run = tmp_path / "runs/ends/run"
    [decision] = [
        d for d in json.loads((run / "decisions.json").read_text()) if d["option"] == "gconfig.stop_token_ids"
    ]
    assert decision["effective"] == "[2]"
    saved = json.loads((run / "export/generation_config.json").read_text())
    assert saved["eos_token_id"] == 2


@pytest.mark.parametrize("command", ["train", "dry run", "generate"])
def test_a_broken_list_is_refused_with_its_path_before_anything_is_generated(checkpoint, tmp_path, capsys, command):
    folder = checkpoint("generation_config.json")
    file = folder / "generation_config.json"
    file.write_text('{"eos_token_id": [1, 320]}')
    arguments = configuration(folder, tmp_path)
    arguments = {
        "train": arguments,
        "dry run": [*arguments, "--dry-run"],
        "generate": ["generate", str(folder), "hello"],
    }[command]
    assert train(arguments) == 2
    output = capsys.readouterr()
    assert f"{file}: found 320; allowed are the ids of the vocabulary, 0 to 319" in output.out + output.err
