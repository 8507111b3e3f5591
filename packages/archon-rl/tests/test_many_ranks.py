"""Whole runs on several ranks, which are threads here: the numbers are those of one process."""

from __future__ import annotations

import threading

import pytest
import torch
from bigram_engine import BigramEngine, BigramRollout
from run_results import rows, table

from archon_rl.trainer import loop
from archon_rl.trainer.step_metrics import peak_bytes
from archon_train.run.metrics import read_metrics

TOLERANCE = 1e-9
"""Of float64 sums in another order, over a few steps of Adam."""

VARIANTS = {
    "plain": (),
    "decoupled, reference in the reward": (
        "actor.ppo_n_minibatches=3",
        "actor.use_decoupled_loss=true",
        "ref={}",
        "actor.kl_ctl=0.1",
        "actor.adv_norm={}",
        "actor.mask_no_eos_with_zero=true",
    ),
    "warm start, reference in the loss": (
        "warm_start.steps=4",
        "ref={}",
        "actor.kl_loss_coef=0.1",
        "actor.recompute_logprob=true",
        "actor.loss_aggregation=sequence",
    ),
    "groups and truncated completions left out": (
        "actor.dynamic_sampling=true",
        "actor.overlong_filtering=true",
        "actor.ppo_n_minibatches=4",
        "actor.loss_aggregation=constant",
    ),
}


def assert_equal_runs(found, expected) -> None:
    assert [list(row) for row in rows(found)] == [list(row) for row in rows(expected)]
    for row, other in zip(rows(found), rows(expected), strict=True):
        assert row == pytest.approx(other, rel=TOLERANCE, abs=TOLERANCE)
    torch.testing.assert_close(table(found), table(expected), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_reinforcement_learning_gives_the_same_numbers_on_every_layout(run, variant):
    alone = run(*VARIANTS[variant], "trial_name=alone")
    for layout, n_ranks in (("d3", 3), ("d2t2", 4)):
        together = run(*VARIANTS[variant], f"actor.backend=bigram:{layout}", f"trial_name={layout}", ranks=n_ranks)
        assert_equal_runs(together, alone)
        for rank in range(1, n_ranks):
            assert rows(run.other_rank(rank, layout)) == rows(together), "all ranks know the same"


def test_samples_have_the_same_seeds_and_each_is_drawn_on_one_rank(run, monkeypatch):
    lock, drawn = threading.Lock(), []
    generate = BigramRollout.generate

    def recorded(self, requests):
        with lock:
            drawn.append([(request.prompt_ids, request.seeds) for request in requests])
        return generate(self, requests)

    monkeypatch.setattr(BigramRollout, "generate", recorded)
    run("trainer.max_steps=1", "trial_name=alone")
    whole = [request for requests in drawn for request in requests]
    drawn.clear()
    run("trainer.max_steps=1", "trial_name=together", "actor.backend=bigram:d3", ranks=3)
    # Ten held-out records, before and after, and four to train on.
    assert sorted(map(len, drawn)) == [1, 1, 2, 3, 3, 3, 3, 4, 4]
    assert sorted(request for share in drawn for request in share) == sorted(whole)


def test_a_rows_memory_is_that_of_the_rank_with_most(run, monkeypatch):
    lock, measured = threading.Lock(), []

    def measure(device: torch.device) -> int:
        with lock:
            measured.append(len(measured) * 10**9)
            return measured[-1]

    monkeypatch.setattr(loop, "peak_bytes", measure)
    folder = run("trainer.max_steps=2", "actor.backend=bigram:d3", ranks=3)
    assert [row["memory/peak_gb"] for row in read_metrics(folder.metrics) if "memory/peak_gb" in row] == [2, 5]


def test_the_memory_of_a_process_counts_what_it_touched():
    device = torch.device("cpu")
    size, before = 300_000_000, peak_bytes(device)
    torch.ones(before + size, dtype=torch.int8)
    assert before + size < peak_bytes(device) < 3 * (before + size)


@pytest.mark.parametrize("variant", ["plain", "warm start, reference in the loss"])
def test_a_run_stopped_on_one_layout_continues_on_another_with_the_same_numbers(run, variant):
    overrides = VARIANTS[variant]
    whole = run(*overrides, "trial_name=whole")
    # Only one rank hears the signal, and not the first.
    together = (*overrides, "trial_name=parts", "actor.backend=bigram:d2")
    with pytest.raises(KeyboardInterrupt, match="stopped after step 5"):
        run(*together, ranks=2, stop_after=5, stopped_rank=1)
    assert run.folder("parts").checkpoint_steps() == [3, 5]
    parts = run(*overrides, "trial_name=parts", "trainer.resume=true", "actor.backend=bigram:d3", ranks=3)
    assert_equal_runs(parts, whole)


def test_stopping_in_the_warm_start_stops_all_ranks_and_leaves_nothing(run):
    with pytest.raises(KeyboardInterrupt, match="warm start"):
        run("warm_start.steps=5", "actor.backend=bigram:d2", ranks=2, stop_after=2, stopped_rank=1)
    assert not (run.folder().path / "warm_start").exists()


def test_more_ranks_than_prompts_and_sequences_leave_some_with_nothing_to_do(run):
    overrides = ("data.batch_size=1", "gconfig.n_samples=2", "data.validation_size=2", "actor.ppo_n_minibatches=2")
    alone = run(*overrides, "trial_name=alone")
    together = run(*overrides, "trial_name=together", "actor.backend=bigram:d3", ranks=3)
    assert_equal_runs(together, alone)


def test_ranks_agree_to_leave_a_minibatch_out(run):
    overrides = ("actor.dynamic_sampling=true", "gconfig.temperature=1e-6", "trainer.max_steps=2")
    together = run(*overrides, "actor.backend=bigram:d2", ranks=2)
    [*_, last] = rows(together)
    assert (last["updates"], last["left_out_updates"]) == (0, 1)


def test_sequences_that_belong_together_are_trained_on_one_rank(run, monkeypatch):
    trained, train_batch = [], BigramEngine.train_batch
    monkeypatch.setattr(
        BigramEngine, "train_batch", lambda self, batch, loss: trained.append(batch) or train_batch(self, batch, loss)
    )
    overrides = ("actor.mb_spec.granularity=4", "trainer.max_steps=2", "trainer.eval_every=0")
    alone = run(*overrides, "trial_name=alone")
    trained.clear()
    assert_equal_runs(run(*overrides, "trial_name=together", "actor.backend=bigram:d3", ranks=3), alone)
    assert sorted(len(batch) for batch in trained) == [4, 4, 4, 4, 8, 8]


def test_the_tokenizer_is_built_once_and_read_by_the_others(run, monkeypatch):
    from archon_rl.trainer import task

    builders, build = [], task.build_tokenizer
    monkeypatch.setattr(
        task, "build_tokenizer", lambda *args: builders.append(threading.current_thread().name) or build(*args)
    )
    run("trainer.max_steps=1", "actor.backend=bigram:d3", ranks=3)
    assert builders == ["rank 0"]


def test_an_error_on_one_rank_ends_the_run_with_that_error(run, monkeypatch):
    def failing(self, requests):
        if threading.current_thread().name == "rank 1":
            raise OSError("server lost")
        return generate(self, requests)

    generate = BigramRollout.generate
    monkeypatch.setattr(BigramRollout, "generate", failing)
    with pytest.raises(OSError, match="server lost"):
        run("actor.backend=bigram:d2", ranks=2)


SUPERVISED = ("algorithm=sft", "reward=null", "data.batch_size=5", "data.validation_size=7", "trainer.eval_every=3")


@pytest.mark.parametrize(("layout", "n_ranks"), [("d3", 3), ("d2t2", 4), ("d6", 6)])
def test_supervised_training_and_its_evaluation_give_the_same_numbers_on_every_layout(run, layout, n_ranks):
    alone = run(*SUPERVISED, "trial_name=alone")
    together = run(*SUPERVISED, "trial_name=together", f"actor.backend=bigram:{layout}", ranks=n_ranks)
    assert_equal_runs(together, alone)
    assert "eval/loss" in rows(together)[-1]


def test_a_resumed_supervised_run_on_another_layout_continues_with_the_same_numbers(run):
    whole = run(*SUPERVISED, "trial_name=whole")
    with pytest.raises(KeyboardInterrupt):
        run(*SUPERVISED, "trial_name=parts", "actor.backend=bigram:d3", ranks=3, stop_after=3)
    parts = run(*SUPERVISED, "trial_name=parts", "trainer.resume=true", "actor.backend=bigram:d2", ranks=2)
    assert_equal_runs(parts, whole)
