"""PPO with a critic on stand-in engines: what the critic learns, its warm-up, its checkpoints, and what is refused."""

from __future__ import annotations

import pytest
import torch
from bigram_engine import BigramEngine
from run_results import rows, table

from archon_core.errors import ConfigError, WeightsError
from archon_rl.advantages import ConstantLambda, Normalisation
from archon_rl.algorithm import DropTruncated
from archon_rl.losses.value import ValueTerm
from archon_rl.ppo import ppo

TOLERANCE = 1e-9
PPO = (
    "algorithm=ppo",
    "gconfig.n_samples=1",
    "data.batch_size=8",
    "critic.ppo_n_minibatches=3",
    "critic.optimizer.lr=0.2",
    "critic.eps_clip=0.1",
    "actor.adv_norm={}",
    "actor.gae_lambda=0.9",
)
VARIANTS = {
    "plain": (),
    "reference, truncated completions": (
        "ref={}",
        "actor.kl_ctl=0.1",
        "actor.gae_timestep_unit=turn",
        "critic.mask_no_eos_with_zero=true",
        "critic.bootstrap_truncated=true",
        "critic.gae_lambda=1.0",
    ),
    "groups, warm-up, saved beside training": (
        "trainer.async_save=true",
        "gconfig.n_samples=4",
        "actor.dynamic_sampling=true",
        "actor.reward_norm={mean_level: group, std_level: null}",
        "critic.eps_clip=null",
        "critic.warmup_steps=2",
    ),
}


def compose(run, *overrides: str):
    decisions = []
    return ppo(run.config(*PPO, *overrides), decisions), {d.option: d for d in decisions}


def critic(folder) -> torch.Tensor:
    return torch.load(folder.export_of("critic") / "table.pt")


def assert_equal_runs(found, expected, tolerance: float = 0.0) -> None:
    assert [list(row) for row in rows(found)] == [list(row) for row in rows(expected)]
    for row, other in zip(rows(found), rows(expected), strict=True):
        assert row == pytest.approx(other, rel=tolerance, abs=tolerance)
    for weights in (table, critic):
        torch.testing.assert_close(weights(found), weights(expected), rtol=tolerance, atol=tolerance)


def test_options_choose_the_parts(run):
    algorithm, decisions = compose(run)
    assert algorithm.roles == {"critic"}
    assert (algorithm.critic.loss, algorithm.critic.filters, algorithm.critic.n_minibatches) == (ValueTerm(0.1), (), 3)
    assert algorithm.advantages.reward_norm is None, "a critic is the baseline"
    assert algorithm.advantages.adv_norm == Normalisation()
    assert (algorithm.advantages.bootstrap, algorithm.advantages.returns_lambda) == (None, None)
    assert decisions["critic.bootstrap_truncated"].effective == "a completion ends with value 0"
    algorithm, decisions = compose(run, *VARIANTS["reference, truncated completions"])
    assert algorithm.roles == {"critic", "ref"}
    assert algorithm.critic.filters == (DropTruncated(),)
    assert algorithm.advantages.bootstrap == "truncated"
    assert algorithm.advantages.returns_lambda == ConstantLambda(1.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("critic=null",), r"critic: found no section, and algorithm 'ppo' needs one"),
        (("critic.optimizer=null",), r"critic\.optimizer: found null; algorithm ppo trains the critic"),
        (("critic.eps_clip=0",), r"critic\.eps_clip: found 0(\.0)?; allowed .* above 0.*null switches it off"),
        (("critic.warmup_steps=-1",), r"critic\.warmup_steps: found -1"),
        (("critic.gae_lambda=1.5",), r"critic\.gae_lambda: found 1\.5"),
        (("actor.dynamic_sampling=true",), r"actor\.dynamic_sampling: found true with gconfig\.n_samples=1"),
        (("critic.ppo_n_minibatches=9",), r"critic\.ppo_n_minibatches: found 9; allowed is at most .* = 8 completions"),
        (("critic.warmup_steps=6",), r"critic\.warmup_steps: found 6, and the run has 6 steps"),
    ],
)
def test_options_that_no_run_could_use_are_refused(run, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run(*PPO, *overrides)
    assert not run.folder().checkpoint_steps()


def test_a_run_reports_the_critic_and_its_values_explain_ever_more(run):
    """The actor does not move, and rewards depend on the lengths of completions, which the last token tells."""
    lengths = ("actor.overlong_reward_penalty=true", "actor.overlong_tokens=4", "actor.overlong_penalty_factor=1")
    fixed = ("actor.optimizer.lr=0.0", "critic.gae_lambda=1.0", "gconfig.max_new_tokens=4", "trainer.eval_every=0")
    folder = run(*PPO, *lengths, *fixed, "trainer.max_steps=24", "gconfig.n_samples=8")
    trained = [row for row in rows(folder) if "critic/loss" in row]
    assert len(trained) == 24
    names = ("gradient_norm", "learning_rate", "value_clip_fraction", "values", "returns", "updates")
    assert all(f"critic/{name}" in row for row in trained for name in names)
    assert trained[0]["critic/updates"] == 3
    assert any(row["critic/value_clip_fraction"] > 0 for row in trained)
    explained = [row["critic/explained_variance"] for row in trained]
    assert min(explained[-3:]) > max(explained[:3]) / 5, explained
    assert trained[-1]["critic/loss"] < trained[0]["critic/loss"] / 10


def test_the_critic_starts_as_the_actor_with_a_head_from_the_seed(run, monkeypatch):
    built = []
    initialize = BigramEngine.initialize

    def recorded(self):
        built.append((self.role, self.config, self.seed, self.total_steps))
        initialize(self)

    monkeypatch.setattr(BigramEngine, "initialize", recorded)
    run(*PPO, "warm_start.steps=2", "trainer.max_steps=3", "critic.warmup_steps=1", "actor.ppo_n_minibatches=2")
    warm, actor, value = built
    assert [role for role, *_ in built] == ["actor", "actor", "critic"]
    assert value[1].path == actor[1].path != warm[1].path
    assert (value[1].is_critic, actor[1].is_critic, value[2]) == (True, False, actor[2])
    # The actor learns in two of three steps.
    assert (actor[3], value[3]) == (2 * 2, 3 * 3)


def test_in_the_warm_up_the_actor_keeps_its_weights_and_version(run):
    folder = run(*PPO, "critic.warmup_steps=2", "trainer.max_steps=4", "trainer.save_every=1", "trainer.eval_every=0")
    tables = [torch.load(folder.checkpoint_path(step) / "dcp" / "table.pt") for step in (1, 2, 3)]
    values = [torch.load(folder.checkpoint_path(step) / "critic" / "dcp" / "table.pt") for step in (1, 2, 3)]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[1], tables[2])
    assert not torch.equal(values[0], values[1])
    trained = [row for row in rows(folder) if row["step"] > 0]
    assert [row["version"] for row in trained] == [0, 0, 1, 2]
    assert [row["updates"] for row in trained] == [0, 0, 1, 1]
    assert "left_out_updates" not in trained[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layout_has_the_numbers_of_one_process(run, variant):
    overrides = (*PPO, *VARIANTS[variant], "trainer.max_steps=4")
    alone = run(*overrides, "trial_name=alone")
    for actor, value, n_ranks in (("d2", "t2", 2), ("t2", "d2", 2), ("d2t2", "", 4)):
        layouts = (f"actor.backend=bigram:{actor}", f"critic.backend={'bigram:' + value if value else ''}")
        together = run(*overrides, *layouts, f"trial_name={actor}-{value}", ranks=n_ranks)
        assert_equal_runs(together, alone, TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_continues_with_the_same_numbers(run, variant):
    overrides = (*PPO, *VARIANTS[variant])
    whole = run(*overrides, "trial_name=whole")
    with pytest.raises(KeyboardInterrupt):
        run(*overrides, "trial_name=parts", stop_after=3)
    parts = run(*overrides, "trial_name=parts", "trainer.resume=true", "actor.backend=bigram:d2", ranks=2)
    assert_equal_runs(parts, whole, TOLERANCE)


def test_a_checkpoint_of_a_run_without_a_critic_is_refused(run):
    with pytest.raises(KeyboardInterrupt):
        run("data.batch_size=8", stop_after=2)
    with pytest.raises(WeightsError, match=r"found no state of the critic; a run with another algorithm wrote it"):
        run(*PPO, "trainer.resume=true")


def test_updates_of_the_critic_that_do_not_take_place_are_told(run):
    """Without an end token no completion ends before the limit, so none is left to learn from."""
    folder = run(*PPO, "gconfig.max_new_tokens=1", "critic.mask_no_eos_with_zero=true", "trainer.max_steps=1")
    text = (folder.path / "output.txt").read_text(encoding="utf-8")
    assert "mini-batches of the critic without a completion to learn from" in " ".join(text.split())
