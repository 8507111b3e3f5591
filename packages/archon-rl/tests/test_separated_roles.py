"""Critic, reference and teacher on their own ranks, on stand-in engines: the numbers of one process, and errors."""

from __future__ import annotations

import pytest
import torch
from bigram_engine import BigramEngine
from run_results import rows, table
from test_ppo import PPO, VARIANTS, assert_equal_runs

from archon_core.errors import RewardError, WeightsError
from archon_rl.run_problems import teacher_taught_apart

TOLERANCE = 1e-9
PENALTY = ("ref={}", "actor.kl_ctl=0.1")
TEACHER = ("teacher.engine_type=train", "teacher.distill_loss_weight=0.5", "trainer.eval_before_train=false")


def backends(**layouts: str) -> tuple[str, ...]:
    return tuple(f"{role}.backend=bigram:{layout}" for role, layout in layouts.items())


@pytest.mark.parametrize(
    "variant", ["plain", *(pytest.param(one, marks=pytest.mark.wide) for one in VARIANTS if one != "plain")]
)
def test_a_critic_on_ranks_of_its_own_has_the_numbers_of_one_process(run, variant):
    overrides = (*PPO, *VARIANTS[variant], "trainer.max_steps=4")
    alone = run(*overrides, "trial_name=alone")
    for actor, ranks, critic, more in (("d1", 1, "d2", 2), ("d2", 2, "t2", 2), ("t2", 2, "d1", 1)):
        layouts = backends(actor=actor, critic=critic)
        apart = run(*overrides, *layouts, f"trial_name={actor}-{critic}", ranks=ranks, separated={"critic": more})
        assert_equal_runs(apart, alone, TOLERANCE)


def test_a_reference_and_a_critic_on_different_ranks(run):
    overrides = (*PPO, *PENALTY, "trainer.max_steps=3")
    alone = run(*overrides, "trial_name=alone")
    layouts = backends(actor="d2", critic="d1", ref="t2")
    apart = run(*overrides, *layouts, "trial_name=apart", ranks=2, separated={"critic": 1, "ref": 2})
    assert_equal_runs(apart, alone, TOLERANCE)


def test_a_teacher_on_ranks_of_its_own(run):
    taught = run("trainer.max_steps=8", "trial_name=taught", "gconfig.n_samples=8")
    overrides = (*TEACHER, f"teacher.path={taught.export}", "trainer.max_steps=3")
    alone = run(*overrides, "trial_name=alone")
    apart = run(*overrides, *backends(teacher="d2"), "trial_name=apart", separated={"teacher": 2})
    assert [list(row) for row in rows(apart)] == [list(row) for row in rows(alone)]
    for row, other in zip(rows(apart), rows(alone), strict=True):
        assert row == pytest.approx(other, rel=TOLERANCE, abs=TOLERANCE)
    torch.testing.assert_close(table(apart), table(alone), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    "saving", [pytest.param("trainer.async_save=false", marks=pytest.mark.wide), "trainer.async_save=true"]
)
def test_a_resumed_run_continues_with_the_same_numbers(run, saving):
    overrides = (*PPO, saving, "enable_offload=true")
    whole = run(*overrides, "trial_name=whole")
    with pytest.raises(KeyboardInterrupt):
        run(*overrides, *backends(critic="d2"), "trial_name=parts", stop_after=3, separated={"critic": 2})
    resumed = (*overrides, "trial_name=parts", "trainer.resume=true")
    parts = run(*resumed, *backends(actor="d2", critic="t2"), ranks=2, separated={"critic": 2})
    assert_equal_runs(parts, whole, TOLERANCE)


def test_only_the_fields_that_the_critic_needs_leave_the_actors_ranks(run, monkeypatch):
    seen = []
    stats = BigramEngine._stats

    def recorded(self, batch, loss):
        if self.role == "critic":
            seen.append((set(batch.token_fields), set(batch.sequence_fields)))
        return stats(self, batch, loss)

    monkeypatch.setattr(BigramEngine, "_stats", recorded)
    run(*PPO, "trainer.max_steps=1", separated={"critic": 1})
    assert seen
    assert all(fields == ({"loss_mask", "returns", "values"}, set()) for fields in seen)


def test_an_error_of_the_critic_ends_the_actors_ranks(run, monkeypatch):
    def failing(self, path, format):
        raise WeightsError("the disk is full")

    save = BigramEngine.save
    monkeypatch.setattr(
        BigramEngine, "save", lambda self, *args: (failing if self.role == "critic" else save)(self, *args)
    )
    with pytest.raises(WeightsError, match="the disk is full"):
        run(*PPO, "trainer.max_steps=2", ranks=2, separated={"critic": 2})


def test_an_error_of_the_actor_ends_the_critics_ranks(run, monkeypatch):
    def failing(self, *args):
        if self.role == "actor":
            raise RewardError("not today")
        return train(self, *args)

    train = BigramEngine.train_batch
    monkeypatch.setattr(BigramEngine, "train_batch", failing)
    with pytest.raises(RewardError, match="not today"):
        run(*PPO, "trainer.max_steps=2", separated={"critic": 1})


@pytest.mark.parametrize("separated", [{}, {"critic": 1}], ids=["colocated", "separated"])
def test_idle_models_are_in_host_memory(run, monkeypatch, separated):
    left = []
    close = BigramEngine.close

    def recorded(self):
        left.append((self.role, self.offloaded))
        close(self)

    monkeypatch.setattr(BigramEngine, "close", recorded)
    run(*PPO, *PENALTY, "enable_offload=true", "trainer.max_steps=1", separated=separated)
    assert sorted(left) == [("actor", False), ("critic", True), ("ref", True)]


@pytest.mark.parametrize(
    ("strategy", "refused"),
    [("{type: separation}", True), ("{type: colocation, target: ref}", True), ("null", False)],
)
def test_a_teacher_with_supervised_steps_stays_on_the_actors_ranks(run, strategy, refused):
    options = ("teacher.engine_type=train", "teacher.model_config={model_type: qwen3}", "teacher.warm_start.steps=2")
    config = run.config(*options, f"teacher.scheduling_strategy={strategy}")
    found = [*teacher_taught_apart(config.teacher)]
    assert len(found) == refused
    assert all("these steps run on the actor's ranks; train the teacher in a run of algorithm=sft" in t for t in found)
