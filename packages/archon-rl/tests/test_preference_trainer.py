"""Training on preferences with stand-in engines: numbers, the cached reference, resuming, evaluation, data rules."""

from __future__ import annotations

import json
import math

import pytest
import torch
from bigram_engine import BigramEngine
from run_results import rows, table

from archon_core.errors import ConfigError, DamagedError, DataError
from archon_rl.losses.preference import PreferenceLoss

CONFIGURATION = """
experiment_name: test
trial_name: trial
algorithm: dpo
cluster: {n_gpus_per_node: 1, fileroot: ROOT}
tokenizer: {kind: characters}
data: {dataset: jsonl, path: ROOT/pairs.jsonl, prompt_key: prompt, batch_size: 4, validation_size: 5}
actor:
  backend: bigram:d1
  model_config: {model_type: qwen3}
  optimizer: {lr: 0.05}
trainer: {max_steps: 6, save_every: 3, eval_every: 3}
"""


@pytest.fixture
def pairs(run):
    """A run over thirty pairs: the chosen answer is larger than 9, the rejected one is not."""
    records = [
        {"prompt": f"{a}+{b}=", "chosen": str(10 + a + b), "rejected": str((a + b) % 10)}
        for a in range(6)
        for b in range(5)
    ]
    (run.root / "pairs.jsonl").write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")

    def start(*overrides, **options):
        return run(*overrides, text=CONFIGURATION, **options)

    start.root, start.runner = run.root, run
    return start


@pytest.fixture
def built(monkeypatch):
    """Whether each engine that is built has an optimizer, in order."""
    found = []
    initialize = BigramEngine.initialize
    monkeypatch.setattr(
        BigramEngine, "initialize", lambda self: (found.append(self.config.optimizer is not None), initialize(self))
    )
    return found


def decided(pairs, option) -> list[str]:
    return [decision.effective for decision in pairs.runner.context.decisions if decision.option == option]


def test_dpo_prefers_the_chosen_answers_of_held_out_pairs(pairs, built):
    written = rows(pairs("trainer.max_steps=40", "trainer.eval_every=40"))
    before, after = written[0], written[-1]
    assert before["eval/loss"] == pytest.approx(math.log(2))
    assert before["eval/margin"] == 0
    assert written[1]["loss"] == pytest.approx(math.log(2)), "the policy starts as the reference"
    assert after["eval/accuracy"] == 1
    assert after["eval/loss"] < 0.6
    assert built == [False, True], "the reference, then the policy"
    assert decided(pairs, "ref") == ["the actor's initial weights"]
    assert decided(pairs, "actor.mb_spec.granularity") == ["2"]


def test_a_reward_model_scores_the_chosen_answers_higher_and_needs_no_reference(pairs, built):
    folder = pairs("algorithm=rw", "trainer.max_steps=40", "trainer.eval_every=40")
    written = rows(folder)
    assert written[-1]["eval/accuracy"] == 1
    assert written[-1]["eval/loss"] < written[0]["eval/loss"] / 2
    assert written[-1]["margin"] == pytest.approx(written[-1]["chosen_score"] - written[-1]["rejected_score"])
    assert built == [True]
    assert decided(pairs, "actor.is_critic") == ["true"]
    assert not (folder.path / "reference").exists()


@pytest.mark.parametrize("algorithm", ["dpo", "rw"])
def test_a_resumed_run_continues_with_the_same_rows(pairs, built, algorithm):
    whole = pairs("trial_name=whole", f"algorithm={algorithm}")
    with pytest.raises(KeyboardInterrupt):
        pairs("trial_name=parts", f"algorithm={algorithm}", stop_after=3)
    built.clear()
    parts = pairs("trial_name=parts", f"algorithm={algorithm}", "trainer.resume=true")
    assert rows(parts) == rows(whole)
    torch.testing.assert_close(table(parts), table(whole))
    assert built == [True], "the resumed run reads the reference's numbers"


def test_only_records_that_the_run_uses_pass_the_reference(pairs, built):
    from safetensors.torch import load_file

    with pytest.raises(KeyboardInterrupt):
        pairs("trainer.max_steps=3", "trainer.eval_size=2", "trainer.save_every=1", stop_after=1)
    folder = pairs.runner.folder()
    first = load_file(folder.path / "reference" / "logprobs.safetensors")
    assert {name: int((~values.isnan()).all(1).sum()) for name, values in first.items()} == {
        "train": 12,
        "validation": 2,
    }
    built.clear()
    pairs("trainer.max_steps=8", "trainer.eval_size=2", "trainer.resume=true")
    second = load_file(folder.path / "reference" / "logprobs.safetensors")
    assert not second["train"].isnan().any()
    known = ~first["train"].isnan()
    assert torch.equal(second["train"][known], first["train"][known])
    assert built == [False, True], "a longer run computes what is missing"


def test_changed_records_are_computed_again_and_damage_is_an_error(pairs):
    with pytest.raises(KeyboardInterrupt):
        pairs(stop_after=3)
    file = pairs.root / "pairs.jsonl"
    file.write_text(file.read_text().replace('"chosen": "10"', '"chosen": "11"'))
    pairs("trainer.resume=true", "trainer.accept_changed=[data,validation,tokenizer]", "trainer.max_steps=7")
    assert decided(pairs, "trainer.resume") == ["new ones"]
    cached = pairs.runner.folder().path / "reference" / "logprobs.safetensors"
    content = bytearray(cached.read_bytes())
    content[-1] ^= 1
    cached.write_bytes(content)
    with pytest.raises(DamagedError) as error:
        pairs("trainer.resume=true", "trainer.accept_changed=[data,validation]", "trainer.max_steps=8")
    assert "remove" in error.value.__notes__[0]


@pytest.mark.parametrize("algorithm", ["dpo", "rw"])
def test_two_ranks_keep_pairs_together_and_give_the_numbers_of_one(pairs, algorithm):
    options = (f"algorithm={algorithm}", "data.batch_size=3")
    alone = rows(pairs("trial_name=alone", *options))
    both = rows(pairs("trial_name=both", "actor.backend=bigram:d2", *options, ranks=2))
    for row, other in zip(both, alone, strict=True):
        assert row == pytest.approx(other, rel=1e-9, abs=1e-12)


def test_the_held_out_numbers_do_not_depend_on_the_batch_size(pairs):
    found = [rows(pairs(f"trial_name=t{n}", f"data.batch_size={n}", "trainer.max_steps=1"))[0] for n in (1, 2, 5)]
    assert found[1] == pytest.approx(found[0], rel=1e-12)
    assert found[2] == pytest.approx(found[0], rel=1e-12)


def test_the_warm_start_trains_on_the_chosen_answers_and_the_reference_starts_there(pairs):
    folder = pairs("warm_start.steps=30", "warm_start.lr=0.1", "trainer.max_steps=1")
    written = rows(folder)
    warm = [row["warm_start/loss"] for row in written if "warm_start/loss" in row]
    assert warm[-1] < warm[0] - 1
    [first] = [row for row in written if "loss" in row]
    assert first["loss"] == pytest.approx(math.log(2))
    tokens = {row["warm_start/tokens"] for row in written if "warm_start/tokens" in row}
    assert tokens == {4 * 8}, "begin, prompt of 4, answer of 2, end"


def test_a_reference_with_other_weights_is_used(pairs):
    folder = pairs("trial_name=first")
    options = ("+ref.backend=bigram:d1", f"ref.path={folder.export}", "trainer.max_steps=1")
    [first] = [row for row in rows(pairs("trial_name=second", *options)) if "loss" in row]
    assert abs(first["loss"] - math.log(2)) > 1e-3


def test_ipo_averages_as_other_libraries_do_or_sums_as_the_paper(pairs):
    pairs("actor.loss_type=ipo", "trainer.max_steps=1")
    assert decided(pairs, "actor.ipo_logprobs") == ["log-probabilities averaged over the answer's tokens"]
    assert pairs.runner.trainer._algorithm.loss == PreferenceLoss("ipo", average=True)
    pairs("actor.loss_type=ipo", "actor.ipo_logprobs=sum", "trainer.max_steps=1", "trial_name=sum")
    assert decided(pairs, "actor.ipo_logprobs") == ["log-probabilities summed over the answer's tokens"]
    assert pairs.runner.trainer._algorithm.loss == PreferenceLoss("ipo")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("actor.beta=0", r"actor\.beta: found 0"),
        (
            "actor.loss_type=hinge",
            r"actor\.loss_type: found 'hinge'; allowed are sigmoid or ipo|allowed are sigmoid, ipo",
        ),
        ("actor.is_critic=true", r"actor\.is_critic: found true; a model with a value head has no log-prob"),
        ("data.equal_pairs=keep", r"data\.equal_pairs: found 'keep'"),
        ("actor.mb_spec.max_tokens_per_mb=12", r"allowed are pairs of at most 12 tokens"),
    ],
)
def test_invalid_options_are_named(pairs, override, message):
    with pytest.raises((ConfigError, DataError), match=message):
        pairs(override)


def test_equal_answers_are_an_error_or_left_out(pairs):
    with (pairs.root / "pairs.jsonl").open("a") as file:
        file.write('\n{"prompt": "1", "chosen": "2", "rejected": "2"}')
    with pytest.raises(DataError, match=r"pairs\.jsonl:31: .*found equal values"):
        pairs()
    pairs("data.equal_pairs=drop", "trial_name=dropped", "trainer.max_steps=1")
    [effective] = decided(pairs, "data.equal_pairs")
    assert effective.startswith("1 of ")
    assert "pairs.jsonl:31" in effective
