"""Dynamic sampling: which prompts a step draws, and what it trains on."""

from __future__ import annotations

import json
from zlib import crc32

import pytest
import torch
from bigram_engine import BigramRollout
from hypothesis import given
from hypothesis import strategies as st
from run_results import rows, table

from archon_core.contracts.batch import Batch
from archon_rl.advantages import GROUPS, REWARDS
from archon_rl.algorithm import TRUNCATED, MixedGroups
from archon_rl.datasets.cursor import DataCursor
from archon_rl.trainer.collecting import collect
from archon_rl.trainer.rollout_batch import COMPLETION_LENGTHS

REFILL = ("actor.dynamic_sampling=true", "gconfig.n_samples=2", "data.validation_size=4")
FULL = (*REFILL, "actor.dynamic_sampling_max_rounds=50")
"""Enough rounds to fill every batch."""


class Prompts:
    """Groups of two completions; the prompts in ``good`` have samples with different rewards."""

    def __init__(self, good) -> None:
        self.good, self.calls, self.n_drawn = good, [], 0

    def __call__(self, n):
        groups = torch.arange(self.n_drawn, self.n_drawn + n).repeat_interleave(2)
        rewards = torch.tensor([float(g in self.good and i % 2) for i, g in enumerate(groups.tolist())])
        self.calls.append(n)
        self.n_drawn += n
        fields = {
            GROUPS: groups,
            REWARDS: rewards,
            TRUNCATED: groups % 2 == 0,
            COMPLETION_LENGTHS: groups + 1,
        }
        return Batch.from_sequences([[group] for group in groups.tolist()], sequence_fields=fields), rewards


def test_rounds_draw_the_missing_prompts_until_the_batch_is_full():
    prompts = Prompts(good={1, 2, 4, 7, 8})
    found = collect(prompts, 4, selection=MixedGroups(), max_rounds=10)
    assert prompts.calls == [4, 2, 1, 1]
    assert found.batch.sequence_fields[GROUPS].tolist() == [1, 1, 2, 2, 4, 4, 7, 7]
    assert found.batch.input_ids.tolist() == [1, 1, 2, 2, 4, 4, 7, 7]
    assert found.statistics == {
        # Of all eight groups: four of sixteen completions have reward 1.
        "reward": 0.25,
        "reward_std": pytest.approx(torch.tensor([1.0] * 4 + [0.0] * 12).std().item()),
        "completion_tokens": 4.5,
        "truncated": 0.5,
        "tokens": 16,
        "selected": 0.5,
        "sampling_rounds": 4,
        "prompts": 8,
        "rejected_prompts": 4,
        "missing_prompts": 0,
    }


def test_the_bound_leaves_a_smaller_batch_and_counts_what_is_missing():
    prompts = Prompts(good={1, 5})
    found = collect(prompts, 4, selection=MixedGroups(), max_rounds=2)
    assert prompts.calls == [4, 3]
    assert found.batch.sequence_fields[GROUPS].tolist() == [1, 1, 5, 5]
    assert (found.statistics["missing_prompts"], found.statistics["rejected_prompts"]) == (2, 5)
    nothing = collect(Prompts(good=set()), 4, selection=MixedGroups(), max_rounds=3)
    assert (len(nothing.batch), nothing.statistics["prompts"], nothing.statistics["selected"]) == (0, 12, 0)


def test_a_round_whose_prompts_have_no_rewards_counts_as_rejected():
    prompts = Prompts(good={0, 1, 2, 6})
    found = collect(
        lambda n: (prompts(n), None)[n == 1 and prompts.n_drawn < 6], 4, selection=MixedGroups(), max_rounds=9
    )
    assert found.batch.sequence_fields[GROUPS].tolist() == [0, 0, 1, 1, 2, 2, 6, 6]
    assert (found.statistics["prompts"], found.statistics["rejected_prompts"]) == (7, 3)
    assert found.statistics["sampling_rounds"] == 4


def test_without_a_selection_there_is_one_round_and_nothing_to_count():
    prompts = Prompts(good=set())
    found = collect(prompts, 4, max_rounds=10)
    assert (prompts.calls, len(found.batch)) == ([4], 8)
    assert "prompts" not in found.statistics


@given(
    n_records=st.integers(1, 12),
    batch_size=st.integers(1, 12),
    refills=st.lists(st.lists(st.integers(1, 9), max_size=3), min_size=1, max_size=8),
    stop=st.integers(0, 7),
)
def test_every_record_is_drawn_once_per_epoch_however_many_a_step_draws_also_after_a_resume(
    n_records, batch_size, refills, stop
):
    batch_size = min(batch_size, n_records)
    cursor, drawn = DataCursor(n_records, batch_size, seed=5), []
    for step, more in enumerate(refills):
        if step == stop:
            epoch, position = cursor.position(step)
            cursor = DataCursor(n_records, batch_size, seed=5)
            cursor.seek(step, drawn=epoch * n_records + position)
        drawn += cursor.indices(step)
        for n in more:
            drawn += cursor.refill(step, n)
    endless = DataCursor(n_records, n_records, seed=5)
    expected = [index for epoch in range(len(drawn) // n_records + 1) for index in endless.indices(epoch)]
    assert drawn == expected[: len(drawn)]


@pytest.fixture(autouse=True)
def reward(monkeypatch):
    """A reward that half of the samples of a random model get."""
    monkeypatch.setattr(
        "archon_rl.rewards.arithmetic.final_number_reward",
        lambda prompt, completion, record: float(crc32((prompt + completion).encode()) % 2),
    )


@pytest.fixture
def prompts_of_training(monkeypatch):
    """The prompts that training steps sample, in order; evaluation is greedy."""
    generate, seen = BigramRollout.generate, []

    def recorded(self, requests):
        seen.extend((r.prompt_ids, r.seeds) for r in requests if not r.config.greedy)
        return generate(self, requests)

    monkeypatch.setattr(BigramRollout, "generate", recorded)
    return seen


def test_a_run_fills_its_batches_and_a_resumed_run_draws_the_same_prompts(run, prompts_of_training):
    whole = run(*FULL, "trial_name=whole")
    drawn = list(prompts_of_training)
    steps = [row for row in rows(whole) if "reward" in row]
    assert all(row["prompts"] - row["rejected_prompts"] + row["missing_prompts"] == 4 for row in steps)
    assert {row["missing_prompts"] for row in steps} == {0}
    assert max(row["sampling_rounds"] for row in steps) > 1
    assert sum(row["prompts"] for row in steps) == len(drawn) > 4 * len(steps)
    n_records = len({prompt for prompt, _ in drawn})
    for start in range(0, len(drawn) - n_records, n_records):
        assert len({prompt for prompt, _ in drawn[start : start + n_records]}) == n_records, "once per epoch"
    assert len({seed for _, seeds in drawn for seed in seeds}) == 2 * len(drawn)

    prompts_of_training.clear()
    with pytest.raises(KeyboardInterrupt):
        run(*FULL, "trial_name=parts", stop_after=3)
    state = json.loads((run.folder("parts").latest_checkpoint() / "trainer.json").read_text())
    consumed = state["epoch"] * state["n_records"] + state["position"]
    assert consumed == len(prompts_of_training) > 3 * 4
    parts = run(*FULL, "trial_name=parts", "trainer.resume=true")
    assert prompts_of_training == drawn
    assert rows(parts) == rows(whole)
    torch.testing.assert_close(table(parts), table(whole), rtol=0, atol=0)


def test_dynamic_bs_trains_on_the_groups_of_one_round(run, prompts_of_training):
    folder = run(*REFILL, "dynamic_bs=true", "trainer.eval_every=0")
    steps = [row for row in rows(folder) if "reward" in row]
    assert len(prompts_of_training) == 4 * len(steps)
    assert {row["sampling_rounds"] for row in steps} == {1}
    assert any(0 < row["missing_prompts"] < 4 for row in steps)


def test_a_step_at_the_bound_says_what_is_missing(run):
    folder = run(*REFILL, "gconfig.temperature=1e-6", "actor.dynamic_sampling_max_rounds=3", "trainer.max_steps=1")
    [*_, last] = rows(folder)
    assert (last["sampling_rounds"], last["prompts"], last["missing_prompts"], last["updates"]) == (3, 12, 4, 0)
    text = " ".join((folder.path / "output.txt").read_text(encoding="utf-8").split())
    assert "Step 1: 0 of 12 prompts, drawn in 3 rounds, have samples with different rewards; 4 are missing" in text


def test_epochs_count_the_prompts_of_full_batches_as_a_decision_says(run):
    run(*REFILL, "trainer.max_steps=null", "trainer.max_epochs=2")
    [decision] = [d for d in run.context.decisions if d.option == "trainer.max_epochs"]
    n_records = json.loads((run.folder().latest_checkpoint() / "trainer.json").read_text())["n_records"]
    assert decision.effective == f"{2 * n_records // 4} steps"
    assert "actor.dynamic_sampling draws in addition" in decision.reason
