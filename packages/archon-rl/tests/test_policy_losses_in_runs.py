"""Policy losses from the configuration to the trainer: whole runs on stand-in engines, and what is computed when."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from run_results import rows

from archon_core.contracts.batch import Batch
from archon_core.contracts.engine import StepStats
from archon_core.errors import ConfigError
from archon_core.plugins import PolicyLossSpec, registry
from archon_rl.algorithm import Algorithm
from archon_rl.config import PolicyOptions
from archon_rl.losses.behaviour import BehaviourWeight
from archon_rl.losses.m2po import SecondMomentMask
from archon_rl.losses.policy import ClippedPolicyTerm
from archon_rl.trainer.rl_step import RLStep
from archon_rl.trainer.roles import RoleEngines

SHORT = ("seed=4", "trainer.max_steps=2", "trainer.save_every=0", "trainer.eval_every=0", "actor.ppo_n_minibatches=2")
DECOUPLED = "actor.use_decoupled_loss=true"
RUNS = {
    "gspo": (("actor.importance_sampling_level=sequence",), {"clip_fraction"}),
    "decoupled": ((DECOUPLED,), {"behave_weight"}),
    "rejection sampling": ((DECOUPLED, "actor.rejection_sampling={metric: ratio, upper: 5.0}"), {"behave_masked"}),
    "truncated importance sampling": ((DECOUPLED, "actor.rejection_sampling.action=clamp"), {"behave_clamped"}),
    "log-linear": ((DECOUPLED, "actor.prox_logp_method=loglinear"), {"behave_weight"}),
    "approximations": ((DECOUPLED, "actor.prox_logp_method=metrics"), {"prox_error/loglinear", "prox_error/rollout"}),
    "m2po": (("actor.m2_threshold=0.04", "actor.eps_clip=0.0", DECOUPLED), {"m2_kept_fraction"}),
    **{
        spec.name: ((f"actor.policy_loss={spec.name}", "actor.eps_clip_higher=0.3"), {"policy_loss"})
        for spec in registry().all(PolicyLossSpec)
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_every_loss_trains_and_gives_the_numbers_of_one_process_on_two(run, name):
    options, metrics = RUNS[name]
    trained = [row for row in rows(run(*SHORT, *options)) if "loss" in row]
    assert len(trained) == 2
    assert metrics <= set(trained[0])
    assert all(math.isfinite(value) for row in trained for value in row.values())
    assert any(row["gradient_norm"] > 0 for row in trained)
    shared = [row for row in rows(run(*SHORT, *options, "trial_name=two", ranks=2)) if "loss" in row]
    for row, other in zip(trained, shared, strict=True):
        assert other == pytest.approx(row, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("actor.use_cispo_loss=true", "actor.use_sapo_loss=true"), r"use_cispo_loss: found true, and so is"),
        (
            ("actor.use_cispo_loss=true", "actor.policy_loss=gmpo"),
            r"use_cispo_loss: found true with actor\.policy_loss=",
        ),
        (("actor.use_cispo_loss=true",), r"eps_clip_higher: found null; CISPO needs an upper bound"),
        (
            ("actor.policy_loss=dppo", "actor.importance_sampling_level=sequence"),
            r"importance_sampling_level: found sequence with the policy loss dppo.*choose one of clip, sapo",
        ),
        (("actor.policy_loss=dppo", DECOUPLED), r"use_decoupled_loss: found true with the policy loss dppo"),
        (
            (DECOUPLED, "actor.prox_logp_method=reuse_train_logp", "actor.ppo_n_minibatches=2"),
            r"prox_logp_method: found reuse_train_logp with actor\.ppo_n_minibatches=2",
        ),
        (("actor.rejection_sampling.metric=kl",), r"metric: found 'kl'; allowed are ratio, kl_k1"),
        (
            ("actor.rejection_sampling={metric: kl_k2, action: clamp}",),
            r"rejection_sampling\.action: found 'clamp' with metric=kl_k2; only the metric 'ratio' can be clamped",
        ),
        (
            ("actor.rejection_sampling={metric: binary_kl, lower: 0.1}",),
            r"rejection_sampling\.lower: found 0\.1 with metric=binary_kl, which has an upper bound alone",
        ),
        (("actor.rejection_sampling={lower: 6}",), r"rejection_sampling\.lower: found 6\.0; allowed are numbers below"),
        (("actor.m2_threshold=0",), r"m2_threshold: found 0\.0; allowed are numbers above 0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(run, options, message):
    with pytest.raises(ConfigError, match=message):
        run(*options)


def test_an_unknown_loss_names_the_nearest_one(run):
    with pytest.raises(ConfigError, match=r"policy loss 'clipp'.*mean 'clip'.*\nInstalled policy losses: clip"):
        run("actor.policy_loss=clipp")


def decisions(run, *options) -> dict[str, str]:
    run(*SHORT, *options)
    return {decision.option: f"{decision.effective}: {decision.reason}" for decision in run.context.decisions}


def test_bounds_without_the_decoupled_loss_are_a_decision(run):
    found = decisions(run, "actor.rejection_sampling.upper=3", "actor.use_sapo_loss=true")
    assert "its weight is 1" in found["actor.rejection_sampling"]
    assert isinstance(run.context.config.actor.rejection_sampling.upper, float)


def test_options_of_another_loss_are_reported_as_unused(run):
    found = decisions(
        run, "actor.policy_loss=sapo", "actor.eps_clip=0.4", "actor.dppo_kl_coef=0", "actor.sapo_tau_pos=2"
    )
    for option in ("actor.eps_clip", "actor.dppo_kl_coef"):
        assert found[option] == "not used: the policy loss sapo has no such option"
    assert "actor.sapo_tau_pos" not in found


def test_every_option_of_a_loss_exists_and_is_read_by_it():
    """Changing one changes the term or its masks."""
    others = {str: "kl", float: 0.37, type(None): 0.37}
    for spec in registry().all(PolicyLossSpec):
        plain = spec.load()(PolicyOptions(eps_clip_higher=0.5), {"masks": ()})
        for name in spec.options:
            options = PolicyOptions(eps_clip_higher=0.5)
            setattr(options, name, others[type(getattr(PolicyOptions(), name))])
            assert spec.load()(options, {"masks": ()}) != plain, f"{spec.name}: {name}"


class FakeActor:
    """Knows two sets of weights: the second after the first update."""

    def __init__(self) -> None:
        self.version = 5
        self.trained: list[Batch] = []
        self.n_forward = 0

    def forward_batch(self, batch: Batch, request) -> dict[str, torch.Tensor]:
        self.n_forward += 1
        shift = 1.0 if self.trained else 0.0
        return {"logprobs": batch.token_fields["logprobs"].float() + shift}

    def train_batch(self, batch: Batch, objective) -> StepStats:
        self.trained.append(batch)
        self.version += 1
        return SimpleNamespace()


def test_masks_and_fractions_are_computed_with_the_weights_that_each_update_changes():
    term = ClippedPolicyTerm(masks=("m2_kept",), behaviour=BehaviourWeight(), proximal="interpolated")
    mask = torch.tensor([True, True, False] * 2)
    fields = {
        "loss_mask": mask,
        "logprobs": torch.zeros(6, dtype=torch.float64),
        "advantages": torch.ones(6, dtype=torch.float64),
        "versions": torch.tensor([3, 5, -1] * 2),
    }
    actor = FakeActor()
    algorithm = Algorithm(name="test", loss=term, masks=(SecondMomentMask(0.5),), n_minibatches=2)
    step = RLStep(None, algorithm, RoleEngines(actor), None, seed=0)
    step.update(Batch(torch.zeros(6, dtype=torch.int64), (3, 3), fields), 0)
    first, second = (batch.token_fields for batch in actor.trained)
    # The policy has moved by 1 after the first update: squared log-ratios 0, then 1.
    assert first["m2_kept"].tolist() == [True, True, True]
    assert second["m2_kept"].tolist() == [False, False, True]
    # The step starts at version 5. Tokens of versions 3 and 5; weights of version 5, then 6.
    assert first["prox_fraction"][:2].tolist() == [1, 1]
    assert second["prox_fraction"][:2].tolist() == pytest.approx([2 / 3, 0])
    assert actor.n_forward == 2


def test_the_first_mask_reuses_the_forward_pass_at_the_start_of_the_step():
    term = ClippedPolicyTerm(masks=("m2_kept",), behaviour=BehaviourWeight())
    fields = {
        "loss_mask": torch.tensor([True, True, False] * 2),
        "logprobs": torch.zeros(6, dtype=torch.float64),
        "advantages": torch.ones(6, dtype=torch.float64),
        "prox_logprobs": torch.tensor([0.0, 0.8, 0.0] * 2, dtype=torch.float64),
        "versions": torch.tensor([5, 5, -1] * 2),
    }
    actor = FakeActor()
    algorithm = Algorithm(name="test", loss=term, masks=(SecondMomentMask(0.3),), n_minibatches=2)
    step = RLStep(None, algorithm, RoleEngines(actor), None, seed=0)
    step.update(Batch(torch.zeros(6, dtype=torch.int64), (3, 3), fields), 0)
    first, second = (batch.token_fields["m2_kept"].tolist() for batch in actor.trained)
    assert first == [True, False, True]
    assert second == [False, False, True]
    assert actor.n_forward == 1
