"""Where a paper's formula and AReaL's differ, the run records a decision that names both."""

from __future__ import annotations

import pytest

from archon_core.contracts.decisions import Decision
from archon_core.plugins import AlgorithmSpec, registry
from archon_rl.named_settings import find_settings

DECOUPLED = "actor.use_decoupled_loss=true"
BOUNDED = (DECOUPLED, "actor.rejection_sampling.level=sequence")


def notes(run, *options: str) -> dict[str, Decision]:
    """Those that name AReaL."""
    found: list[Decision] = []
    registry().get(AlgorithmSpec, "grpo").load()(run.config(*options), found)
    return {decision.option: decision for decision in found if "AReaL" in decision.reason}


@pytest.mark.parametrize(
    ("options", "option", "effective", "source"),
    [
        ((DECOUPLED,), "actor.rejection_sampling", "weight pi_prox / pi_behave, without bounds", "arXiv:2505.24298"),
        (BOUNDED, "actor.rejection_sampling.level", "the weight is the geometric mean", "https://richardli.xyz/"),
        (
            (*BOUNDED, "actor.importance_sampling_level=sequence"),
            "actor.importance_sampling_level",
            "mean over all trained tokens",
            "arXiv:2507.18071",
        ),
        ((DECOUPLED, "actor.policy_loss=sapo"), "actor.use_decoupled_loss", "the gate is on pi /", "arXiv:2511.20347"),
        (("actor.m2_threshold=0.04",), "actor.m2_threshold", "mean of (log pi - log pi_beh", "arXiv:2510.01161"),
        (("actor.m2_threshold=0.04", "actor.eps_clip=0"), "actor.eps_clip", "no clipping", "arXiv:2510.01161"),
        (
            ("actor.m2_threshold=0.04", "actor.eps_clip=0", "actor.policy_loss=clip_cov"),
            "actor.eps_clip",
            "no clipping",
            "arXiv:2510.01161",
        ),
        (("actor.policy_loss=clip_cov",), "actor.policy_loss", "leaves out the tokens", "arXiv:2505.22617 draws"),
        (("actor.policy_loss=kl_cov",), "actor.policy_loss", "the KL is estimated by", "arXiv:2505.22617"),
        (("actor.policy_loss=dppo",), "actor.dppo_kl_coef", "adds dppo_kl_coef", "arXiv:2602.04879"),
        (("ref={}", "actor.kl_ctl=0.1"), "actor.kl_estimator", "the estimate as it is", "arXiv:2501.03262"),
    ],
)
def test_a_decision_names_both(run, options, option, effective, source):
    decision = notes(run, *options)[option]
    assert decision.effective.startswith(effective)
    assert source in decision.reason


def test_a_deviation_around_another_mean_than_areals_is_a_decision(run):
    norm = {
        "actor.reward_norm": "mean_level: group, std_level: batch",
        "actor.adv_norm": "mean_level: null, std_level: batch",
    }
    for option, levels in norm.items():
        decision = notes(run, f"{option}={{{levels}}}")[f"{option}.std_level"]
        assert "arXiv:2508.08221" in decision.reason
    leave_one_out = "actor.reward_norm={mean_level: group, std_level: group, mean_leave1out: true}"
    assert "actor.reward_norm.std_level" in notes(run, leave_one_out)


@pytest.mark.parametrize("name", ["GRPO", "Dr.GRPO", "DAPO", "GSPO", "CISPO", "SAPO", "GMPO", "OPO", "MaxRL"])
def test_presets_whose_formula_areal_shares_or_lacks_have_none(run, name):
    assert not notes(run, *find_settings(name).overrides)


def test_rloo_differs_in_the_size_of_the_kl_estimate_alone(run):
    assert set(notes(run, *find_settings("RLOO").overrides)) == {"actor.kl_estimator"}
