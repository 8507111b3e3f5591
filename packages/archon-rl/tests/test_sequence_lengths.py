"""Lengths are known before the first step: what is too long is refused there, or left out as a decision."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from archon_core.errors import ConfigError, DataError
from archon_rl.datasets.records import ListDataset
from archon_rl.rewards.checking import NamedReward
from archon_rl.text_encoding import TextEncoder
from archon_rl.trainer import sequence_lengths
from archon_rl.trainer.sequence_lengths import (
    LengthLimit,
    example_lengths,
    measure_lengths,
    overlong_error,
    prompt_lengths,
)
from archon_train.run.metrics import read_metrics

sys.path.insert(0, str(Path(__file__).parent))

from chat_tokenizers import CHATML, chat_tokenizer

RL = """
experiment_name: test
trial_name: trial
algorithm: grpo
reward: arithmetic
rewards: {processes: 0}
cluster: {n_gpus_per_node: 1, fileroot: ROOT}
tokenizer_path: ROOT/tokenizer
data: {dataset: jsonl, path: ROOT/train.jsonl, validation_path: ROOT/test.jsonl, batch_size: 2}
actor:
  backend: bigram:d1
  model_config: {model_type: qwen3, max_position_embeddings: 100}
  ppo_n_minibatches: 1
  kl_ctl: 0.0
  optimizer: {lr: 0.05}
rollout: {backend: bigram_rollout}
gconfig: {n_samples: 2, max_new_tokens: 3}
trainer: {max_steps: 2}
"""
SFT = (
    RL.replace("grpo", "sft")
    .replace("reward: arithmetic\nrewards: {processes: 0}\n", "")
    .replace("  ppo_n_minibatches: 1\n  kl_ctl: 0.0\n", "")
)
TOKENIZER = chat_tokenizer(None)


def record(n_tokens: int, answer: str = "5", **more) -> dict:
    """A prompt of ``n_tokens`` tokens: the vocabulary has no token for two of these letters."""
    question = "z" * n_tokens
    assert len(TOKENIZER.encode(question)) == n_tokens
    return {"question": question, "answer": answer, **more}


@pytest.fixture
def write(run):
    """Write the data of a run, and the tokenizer that it reads."""

    def files(train: list[dict], held_out: list[dict] | None = None, template: str | None = None) -> None:
        chat_tokenizer(template).save_pretrained(run.root / "tokenizer")
        for name, records in (("train", train), ("test", held_out or [record(2)])):
            text = "\n".join(json.dumps(record) for record in records)
            (run.root / f"{name}.jsonl").write_text(text, encoding="utf-8")

    return files


def decisions(run) -> list[str]:
    return [
        f"{d.requested} -> {d.effective} ({d.reason})" for d in run.context.decisions if d.option == "data.overlong"
    ]


def test_overlong_prompts_are_refused_before_the_engine_starts_with_their_lines_and_the_options(run, write):
    write([record(10), *[record(98)] * 7, record(97)])
    with pytest.raises(DataError) as refused:
        run(text=RL)
    message = str(refused.value)
    assert re.findall(r"train\.jsonl:(\d+) \(98 tokens\)", message) == ["2", "3", "4", "5", "6"]
    assert "and 2 more: 7 of 9 training records are too long for the run; allowed are prompts of at most 97" in message
    assert "the model has 100 positions (max_position_embeddings), gconfig.max_new_tokens=3 of them for the" in message
    for fix in ("lower gconfig.max_new_tokens", "set gconfig.max_tokens=100", "data.overlong=drop"):
        assert fix in message
    assert not run.folder().metrics.read_text(encoding="utf-8")


def test_dropped_records_are_a_decision_and_the_run_goes_on_without_them(run, write):
    write([record(10), record(98), record(97)], [record(2), record(99)])
    run("data.overlong=drop", text=RL)
    [train, held_out] = decisions(run)
    assert re.search(r"drop -> 1 of 3 training records left out: \S+train\.jsonl:2 \(98 tokens\) \(prompts may", train)
    assert re.search(r"drop -> 1 of 2 held-out records left out: \S+test\.jsonl:2 \(99 tokens\)", held_out)
    assert "Decision: data.overlong" in (run.folder().path / "output.txt").read_text(encoding="utf-8")


def test_held_out_prompts_are_refused_too(run, write):
    write([record(10), record(11)], [record(2), record(99)])
    with pytest.raises(DataError, match=r"test\.jsonl:2 \(99 tokens\): 1 of 2 held-out records are too long"):
        run(text=RL)


def test_dropping_every_training_record_is_refused(run, write):
    write([record(98), record(99)])
    with pytest.raises(DataError, match=r"2 of 2 training records are too long for the run"):
        run("data.overlong=drop", text=RL)


@pytest.mark.parametrize(
    ("override", "longest", "reason"),
    [
        ("gconfig.max_tokens=50", 50, r"gconfig\.max_tokens=50 with the completion\); .* raise gconfig\.max_tokens"),
        ("actor.mb_spec.max_tokens_per_mb=60", 57, r"mb_spec\.max_tokens_per_mb=60, gconfig\.max_new_tokens=3 of them"),
        ("gconfig.max_new_tokens=200", 0, r"the model has 100 positions .* set gconfig\.max_tokens=100"),
    ],
)
def test_every_option_that_limits_a_prompt_is_known(run, write, override, longest, reason):
    if longest:
        write([record(longest), record(longest)])
        run(override, text=RL)
    write([record(1), record(longest + 1)])
    with pytest.raises(DataError, match=rf"train\.jsonl:.* prompts of at most {longest} tokens \(.*{reason}"):
        run(override, "trial_name=refused", text=RL)


def test_supervised_sequences_are_measured_with_their_answers(run, write):
    # Prompt, two letters of an answer and the end of text.
    write([record(97, "zz"), record(98, "zz")])
    with pytest.raises(DataError, match=r"train\.jsonl:2 \(101 tokens\): 1 of 2 .* sequences of at most 100 tokens"):
        run(text=SFT)
    with pytest.raises(DataError, match=r"train\.jsonl:1 \(100 tokens\), .*2 of 2 .* at most 99 tokens .*per_mb=99"):
        run("actor.mb_spec.max_tokens_per_mb=99", "trial_name=mb", text=SFT)


def test_every_rank_refuses_what_the_first_has_measured(run, write):
    write([record(10), record(98)])
    with pytest.raises(DataError, match=r"train\.jsonl:2 \(98 tokens\)"):
        run("actor.backend=bigram:d2", ranks=2, text=RL)
    write([record(10), {"question": "a", "answer": None}])
    with pytest.raises(DataError, match=r"train\.jsonl:2: data\.answer_key='answer': found null"):
        run("actor.backend=bigram:d2", "trial_name=empty", ranks=2, text=RL)
    write([record(10), record(11), record(98)])
    run("actor.backend=bigram:d2", "data.overlong=drop", "trial_name=dropped", ranks=2, text=RL)
    assert "1 of 3 training records left out" in decisions(run)[0]


def test_a_warm_start_measures_whole_sequences(run, write):
    write([record(10, "1" * 90), record(10, "1")])
    run("data.overlong=error", "trial_name=without", text=RL)
    with pytest.raises(DataError, match=r"train\.jsonl:1 \(101 tokens\): .* sequences of at most 100 tokens"):
        run("warm_start.steps=1", text=RL)


def test_a_record_that_cannot_be_encoded_ends_no_step_but_the_start(run, write):
    write([record(10), {"question": [{"role": "user", "content": "a"}], "answer": "5"}])
    with pytest.raises(DataError, match=r"train\.jsonl:2: found messages, .* the tokenizer has none"):
        run(text=RL)
    write([record(10), record(11)], [{"question": "a", "answer": "5"}, {"question": None, "answer": "5"}])
    with pytest.raises(DataError, match=r"test\.jsonl:2: data\.prompt_key='question': found null"):
        run("trial_name=held", text=RL)


def test_an_unknown_choice_for_overlong_records_is_refused(run, write):
    write([record(1), record(2)])
    with pytest.raises(ConfigError, match=r"data\.overlong: found 'skip'; allowed are error, drop"):
        run("data.overlong=skip", text=RL)


def test_a_rollout_on_conversations_gives_rewards_the_record_as_it_is(run, write, monkeypatch):
    messages = [{"role": "system", "content": "short"}, {"role": "user", "content": "2+3?"}]
    verl = {"prompt": messages, "reward_model": {"ground_truth": "5", "style": "rule"}, "extra_info": {"index": 7}}
    seen = []

    def reward(prompt, completion, record):
        seen.append((prompt, dict(record)))
        return float(len(completion))

    monkeypatch.setattr("archon_rl.rewards.in_process.load_reward", lambda source: NamedReward("r", reward))
    write([verl, verl], [verl], CHATML)
    run("data.prompt_key=prompt", "data.answer_key=reward_model.ground_truth", text=RL)
    assert {prompt for prompt, _ in seen} == {"2+3?"}
    assert all(record == {**verl, "answer": "5"} for _, record in seen)
    seen.clear()
    run("data.prompt_key=prompt", "data.answer_key=null", "trial_name=none", text=RL)
    assert all(record == verl for _, record in seen)


def test_supervised_training_on_conversations_lowers_the_loss_of_the_assistants_turns(run, write):
    rows = [
        {"messages": [{"role": "user", "content": f"{a}+1"}, {"role": "assistant", "content": str(a + 1)}] * turns}
        for a in range(4)
        for turns in (1, 2)
    ]
    write(rows, rows[:2], CHATML)
    folder = run("data.prompt_key=messages", "trainer.max_steps=30", text=SFT)
    written = read_metrics(folder.metrics)
    assert written[-1]["eval/loss"] < written[0]["eval/loss"] - 1


def test_records_without_a_line_are_named_by_number_and_length():
    error = overlong_error("training", [{}, {}], [3, 7], [1], LengthLimit(prompt_lengths, 5, "why", ("fix",)))
    assert str(error).startswith("record 1 (7 tokens): 1 of 2 training records are too long for the run")


def test_lengths_in_chunks_are_those_of_single_records(monkeypatch):
    monkeypatch.setattr(sequence_lengths, "CHUNK", 3)
    encoder = TextEncoder(chat_tokenizer(CHATML), "question", "answer")
    records = [{"question": "what is " * n, "answer": "é" * n} for n in range(8)]
    dataset = ListDataset(records, [f"place {n}" for n in range(8)])
    assert measure_lengths(dataset, encoder, prompt_lengths) == [
        len(encoder.encode_prompt(record)) for record in records
    ]
    assert measure_lengths(dataset, encoder, example_lengths) == [
        len(encoder.encode_prompt(record)) + len(encoder.encode_answer(record)) for record in records
    ]
    records[5] = {"question": "a"}
    with pytest.raises(DataError, match="place 5: found no field 'answer'"):
        measure_lengths(ListDataset(records, dataset.places), encoder, example_lengths)
    with pytest.raises(DataError, match=r"record 5 \(counted from 0\): found no field 'answer'"):
        measure_lengths(records, encoder, prompt_lengths)
