"""Scores of a rollout: what a step and an evaluation do about completions without a reward, on every rank."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace

import pytest
from reward_runner import make_scorer
from run_results import rows
from thread_ranks import run_on_ranks

from archon_core.contracts.rollout import Completion, GenerationConfig
from archon_core.errors import ArchonError, ConfigError, DataError, RewardError
from archon_core.models.end_tokens import ModelEnds, end_tokens
from archon_core.plugins import RewardSpec, registry
from archon_core.ranks.ranks import DataRanks
from archon_rl.datasets.placed_record import PlacedRecord
from archon_rl.datasets.records import ListDataset
from archon_rl.text_encoding import TextEncoder
from archon_rl.tokenization import characters_tokenizer
from archon_rl.trainer.evaluation import evaluate_reward
from archon_rl.trainer.rollout_batch import Rollout, rollout_seeds, sample, sampling_options
from archon_rl.trainer.scoring import FAILED, TIMED_OUT, Scorer

ENCODER = TextEncoder(characters_tokenizer(["0123456789"]), "prompt", "solution")


def scorer(function, **options) -> Scorer:
    return make_scorer(function, ENCODER, **options)


def rollout_of(*completions: str, n_samples: int = 1) -> Rollout:
    """One record per text of ``completions``, whose digits are the completions of its samples."""
    ids = {digit: ENCODER.tokenizer.encode(digit, add_special_tokens=False)[0] for digit in "0123456789"}
    records = tuple(
        PlacedRecord({"prompt": "1", "solution": str(i)}, f"data.jsonl:{i + 1}") for i in range(len(completions))
    )
    samples = tuple(tuple(Completion((ids[d],), (-0.5,), (0,), "stop") for d in text) for text in completions)
    return Rollout(records, ((1,),) * len(records), samples)


def digit(prompt, completion, record):
    """The completion as a number; raises for 7 and is not a number for 8."""
    if completion == "7":
        raise TimeoutError("no sandbox")
    return math.nan if completion == "8" else float(completion)


def test_rewards_get_texts_and_the_record_with_the_answer_as_answer():
    seen = []

    def reward(prompt, completion, record):
        seen.append((prompt, completion, dict(record)))
        return 0.0

    scorer(reward)(rollout_of("12", "3"), when="Step 1")
    first, last = {"prompt": "1", "solution": "0", "answer": "0"}, {"prompt": "1", "solution": "1", "answer": "1"}
    assert seen == [("1", "1", first), ("1", "2", first), ("1", "3", last)]


def test_a_step_trains_on_the_prompts_whose_completions_all_have_a_reward():
    scores = scorer(digit)(rollout_of("12", "37", "88", "45"), when="Step 1")
    complete = scores.complete()
    assert complete.values.tolist() == [1.0, 2.0, 4.0, 5.0]
    assert [record["solution"] for record in complete.rollout.records] == ["0", "3"]
    assert len(complete.rollout.completions) == len(complete.rollout.prompts) == 2
    assert scores.metrics() == {FAILED: 3, TIMED_OUT: 0}
    assert scores.values.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    everything = scorer(digit)(rollout_of("12"), when="Step 1")
    assert everything.complete() is everything


def test_a_cause_is_explained_once_with_record_and_traceback_and_then_only_counted():
    notes: list[str] = []
    score = scorer(digit, notes=notes)
    score(rollout_of("1", "7", "8"), when="Step 1")
    score(rollout_of("1", "7", "2"), when="Step 2")
    assert len(notes) == 2
    first, trace = notes[0].split("\n", 1)
    assert first == "Step 1: no reward for 2 of 3 completions"
    assert "data.jsonl:2: reward 'mine': it raised TimeoutError: no sandbox (test_scoring.py:" in trace
    assert 'raise TimeoutError("no sandbox")' in trace
    assert "data.jsonl:3: reward 'mine': it returned nan" in trace
    assert notes[1] == "Step 2: no reward for 1 of 3 completions"


def test_a_batch_without_any_reward_ends_the_run_with_the_reason():
    with pytest.raises(
        RewardError,
        match=r"(?s)^Step 3: no reward for any of 2 completions; the first: data\.jsonl:1: reward 'mine': it raised "
        r"TimeoutError: no sandbox.*Traceback",
    ):
        scorer(digit)(rollout_of("7", "8"), when="Step 3")


def test_further_prompts_of_dynamic_sampling_may_all_fail_up_to_the_share_of_the_run():
    score = scorer(digit, max_failed=0.002)  # 2 of 1,000
    scores = score(rollout_of("7", "8"), when="Step 1", may_all_fail=True)
    assert scores.complete(may_be_empty=True).rollout.records == ()
    with pytest.raises(RewardError, match=r"Step 2: found 3 of the last 3 completions without a reward; allowed are 2"):
        score(rollout_of("7"), when="Step 2", may_all_fail=True)


def test_engines_find_stop_texts_in_text_with_special_tokens_and_rewards_see_it_without():
    encoder, requests = TextEncoder(characters_tokenizer(["ab12"]), "prompt", "solution"), []

    class Echo:
        def generate(self, asked):
            requests.extend(asked)
            return [
                [Completion(r.prompt_ids, (0.0,) * len(r.prompt_ids), (0,) * len(r.prompt_ids), "stop")] for r in asked
            ]

    records = [{"prompt": "a1b", "solution": "1"}]
    rollout = sample(Echo(), encoder, records, GenerationConfig(stop=["1b"]), rollout_seeds(1, 0))
    ids = [*requests[0].prompt_ids, encoder.tokenizer.eos_token_id]
    assert requests[0].decode(ids) == "<bos>a1b<eos>"
    found = make_scorer(lambda prompt, completion, record: float(completion == "a1b"), encoder)(rollout, when="Step 1")
    assert found.values.tolist() == [1.0], "the stop text belongs to the completion"


def test_a_step_without_a_complete_prompt_ends_the_run():
    with pytest.raises(RewardError, match=r"found a completion without a reward for each of the 2 prompts .*:1: rew"):
        scorer(digit)(rollout_of("17", "28"), when="Step 1").complete()


def test_more_failures_than_the_limit_among_recent_completions_end_the_run():
    score = scorer(digit, max_failed=0.005)  # 5 of 1,000
    for step in range(5):
        score(rollout_of("7123"), when=f"Step {step + 1}")
    with pytest.raises(
        RewardError,
        match=r"^Step 6: found 6 of the last 24 completions without a reward; allowed are 5 of 1000 "
        r"\(rewards\.max_failed=0\.005\); .*most frequent cause is TimeoutError",
    ):
        score(rollout_of("7123"), when="Step 6")


def test_old_failures_are_forgotten():
    score = scorer(digit, max_failed=0.001)
    for step in range(4):
        score(rollout_of("7", *["1"] * 999), when=f"Step {step + 1}")


@pytest.mark.parametrize("error", [ConfigError, DataError, RewardError])
def test_errors_about_the_configuration_end_the_run_on_every_rank_and_others_leave_the_record_out(error):
    def complaining(prompt, completion, record):
        if record["answer"] == "1":
            raise error("no answer")
        return 1.0

    lock, found = threading.Lock(), {}

    def body(ranks):
        score = scorer(complaining)
        try:
            outcome = score(rollout_of("1", "2", "3"), DataRanks(ranks.rank, 2, ranks, (0, 1)), when="Step 1")
        except ArchonError as caught:
            outcome = caught
        with lock:
            found[ranks.rank] = outcome

    run_on_ranks(2, body)
    if error is ConfigError:
        assert str(found[1]) == "data.jsonl:2: no answer"
        assert str(found[0]) == f"rank 1 failed: {found[1]}"
        assert type(found[0]) is type(found[1]) is ConfigError
    else:
        assert found[0].outcomes == found[1].outcomes
        assert [one.failed for (one,) in found[0].outcomes] == [False, True, False]


def test_a_record_without_an_answer_costs_its_own_completions():
    rollout, notes = rollout_of("12", "34", "5"), []
    records = (rollout.records[0], PlacedRecord({"prompt": "1"}, "data.jsonl:2"), rollout.records[2])
    scores = scorer(digit, notes=notes)(replace(rollout, records=records), when="Step 1")
    assert [[one.value for one in group] for group in scores.outcomes] == [[1.0, 2.0], [None, None], [5.0]]
    assert "data.jsonl:2: found no field 'solution' among 'prompt'; set data.prompt_key and data.answer_key" in notes[0]


def test_ranks_that_share_records_leave_the_calls_to_one_of_them():
    lock, counts = threading.Lock(), {}

    def body(ranks):
        score = scorer(digit)
        shared = DataRanks(ranks.rank // 2, 2, ranks, (0, 2))  # as under d2t2
        outcomes = score(rollout_of("1", "7", "3"), shared, when="Step 1").outcomes
        with lock:
            counts[ranks.rank] = score.runner.n_calls, [one.failed for (one,) in outcomes]

    run_on_ranks(4, body)
    assert {rank: n_calls for rank, (n_calls, _) in counts.items()} == {0: 2, 1: 0, 2: 1, 3: 0}
    assert {str(failed) for _, failed in counts.values()} == {"[False, True, False]"}


def evaluate(*completions: str) -> dict[str, float]:
    rollout = rollout_of(*completions)

    class Engine:
        def generate(self, requests):
            return [list(samples) for samples in rollout.completions]

    options = sampling_options(GenerationConfig(), end_tokens(2, ModelEnds("the model")), greedy=True)
    records = ListDataset(rollout.records, [record.place for record in rollout.records])
    return evaluate_reward(Engine(), ENCODER, records, scorer(digit), options)


def test_an_evaluation_averages_the_rewards_that_there_are_and_counts_the_others():
    assert evaluate("1", "7", "4", "8") == {"eval/reward": 2.5, "eval/reward_failed": 2}
    assert evaluate("1", "4") == {"eval/reward": 2.5}
    with pytest.raises(RewardError, match=r"^Evaluation: no reward for any of 2 completions"):
        evaluate("7", "8")


def nan_for_5(prompt, completion, record):
    return math.nan if record["answer"] == "5" else float(len(completion))


@pytest.fixture
def registered_reward(run):
    spec = RewardSpec(name="nan_for_5", target="test_scoring:nan_for_5")
    registry().add(spec)
    yield spec.name
    registry().remove(spec.kind, spec.name)


@pytest.mark.parametrize(("ranks", "layout"), [(1, "d1"), (2, "d2")])
def test_a_run_goes_on_without_the_prompt_whose_reward_is_not_a_number(run, registered_reward, ranks, layout):
    file = run.root / "data.jsonl"
    lines = [json.dumps({"question": f"{a}+1=", "answer": str(a + 1)}) for a in (1, 2, 3, 4, 6, 7)]
    file.write_text("\n".join(lines))
    overrides = ("data.dataset=jsonl", f"data.path={file}", "data.validation_size=0", "data.batch_size=6")
    more = ("rewards.max_failed=1", "trainer.max_steps=3", f"actor.backend=bigram:{layout}")
    folder = run(*overrides, *more, f"reward={registered_reward}", ranks=ranks)
    assert [(row["reward/failed"], row["reward/timeout"]) for row in rows(folder)] == [(4, 0)] * 3
    output = (folder.path / "output.txt").read_text(encoding="utf-8")
    assert " ".join(output.split()).count(f"{file}:4: reward 'nan_for_5': it returned nan") == 1
    assert output.count("no reward for 4 of 24 completions") == 3
