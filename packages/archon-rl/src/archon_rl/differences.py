"""Where a published formula, its authors' code and AReaL differ: a decision for each one that a run uses.

A decision names what Archon computes, and in its reason whose formula that is and what the others do. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_rl.config import NormConfig, PolicyOptions
from archon_rl.option_checks import is_unclipped, lambda_form, loss_name


def policy_loss_differences(options: PolicyOptions) -> Iterator[Decision]:
    """Differences of the policy loss.

    Args:
        options: the ``actor`` section, without problems.
    """
    name = loss_name(options)
    if options.use_decoupled_loss:
        yield from _decoupled(options, name)
    if options.m2_threshold is not None:
        yield from _m2po(options, name)
    yield from _losses_that_areal_lacks(options, name)


def _decoupled(options: PolicyOptions, name: str) -> Iterator[Decision]:
    rejection = options.rejection_sampling
    if rejection is None:
        yield Decision(
            "actor.rejection_sampling",
            "null",
            "weight pi_prox / pi_behave, without bounds",
            "the decoupled loss (arXiv:2505.24298, eq. 5) has this weight; AReaL leaves it out without "
            "rejection_sampling",
        )
    elif rejection.level == "sequence" and rejection.metric == "ratio":
        yield Decision(
            "actor.rejection_sampling.level",
            "sequence",
            "the weight is the geometric mean of a sequence's ratios",
            "as in AReaL; sequence-level importance sampling (https://richardli.xyz/rl-collapse) weighs by the product "
            "of the ratios",
        )
    if options.importance_sampling_level == "sequence" and rejection is not None and rejection.action == "mask":
        yield Decision(
            "actor.importance_sampling_level",
            "sequence",
            "mean over all trained tokens of a sequence",
            "as in GSPO (arXiv:2507.18071, eq. 7); AReaL leaves out the tokens that rejection_sampling masks",
        )
    if options.prox_logp_method == "loglinear":
        yield Decision(
            "actor.prox_logp_method",
            "loglinear",
            "(v_prox - v_behave) / (v - v_behave) with the weights' versions v before the update",
            "exact in the first update of a step; AReaL takes v_prox = v - 1",
        )
    if name == "sapo":
        yield Decision(
            "actor.use_decoupled_loss",
            "true",
            "the gate is on pi / pi_prox, and the loss is weighted",
            "SAPO (arXiv:2511.20347, eq. 5) compares with the rollout's policy alone; AReaL refuses the two together",
        )


def _m2po(options: PolicyOptions, name: str) -> Iterator[Decision]:
    yield Decision(
        "actor.m2_threshold",
        f"{options.m2_threshold:g}",
        "mean of (log pi - log pi_behave)^2 over the tokens of a mini-batch that its update drives further from "
        "pi_behave; the loss is divided by all tokens",
        "as in M2PO (arXiv:2510.01161, algorithm 1); AReaL ranks all tokens of every micro-batch, by pi_prox and "
        "pi_behave, and divides by the tokens that are left",
    )
    if name in ("clip", "clip_cov") and is_unclipped(options):
        yield Decision(
            "actor.eps_clip",
            "0.0",
            "no clipping",
            "M2PO's loss (arXiv:2510.01161, eq. 5) is not clipped; AReaL clips the ratio to 1",
        )


def _losses_that_areal_lacks(options: PolicyOptions, name: str) -> Iterator[Decision]:
    if name == "clip_cov":
        yield Decision(
            "actor.policy_loss",
            name,
            "leaves out the tokens with the largest covariances between the bounds",
            "without a draw; arXiv:2505.22617 draws among the tokens between the bounds (eq. 11), its authors' code "
            "only among tokens that PPO does not clip; AReaL has no such loss",
        )
    if name == "kl_cov":
        yield Decision(
            "actor.policy_loss",
            name,
            "the KL is estimated by r - 1 - log r",
            "its gradient is that of the KL of arXiv:2505.22617, eq. 14, and has no jump at r = 1; the authors' code "
            "takes |log r|; AReaL has no such loss",
        )
    if name == "dppo" and options.dppo_kl_coef:
        yield Decision(
            "actor.dppo_kl_coef",
            f"{options.dppo_kl_coef:g}",
            "adds dppo_kl_coef (log r)^2 at every token",
            "as prime-rl's default loss does; arXiv:2602.04879 (eq. 12) has no such term; AReaL has no such loss",
        )


def lambda_differences(options: PolicyOptions) -> Iterator[Decision]:
    """AReaL's dotted name of a form of lambda."""
    asked = options.gae_lambda
    if isinstance(asked, str) and (name := lambda_form(options)) != asked:
        yield Decision("actor.gae_lambda", asked, name, "the same function; Archon imports no dotted name")


def group_norm_difference(options: PolicyOptions) -> Iterator[Decision]:
    """The normalisation of ``grpo`` where the options name none."""
    if options.reward_norm is None and options.adv_norm is None:
        yield Decision(
            "actor.reward_norm",
            "null",
            "mean and deviation of the group",
            "grpo's advantages are relative to the group, and actor.adv_norm is null too",
        )


def critic_differences(critic: Any) -> Iterator[Decision]:
    """Differences of the critic's targets and of its loss."""
    if critic.bootstrap_truncated:
        effective = "completions that reach the length limit continue with the value after their last token"
    else:
        effective = "a completion ends with value 0"
    yield Decision(
        "critic.bootstrap_truncated",
        str(critic.bootstrap_truncated).lower(),
        effective,
        "AReaL continues the sequences that are as long as its padded batch",
    )
    if critic.mask_no_eos_with_zero:
        yield Decision(
            "critic.mask_no_eos_with_zero",
            "true",
            "the critic does not learn from completions that reach the length limit",
            "AReaL documents the option and does not use it",
        )


def advantage_differences(options: PolicyOptions, kl_ctl: float) -> Iterator[Decision]:
    """Differences of the advantages.

    Args:
        options: the ``actor`` section, without problems.
        kl_ctl: weight of the KL penalty, 0 without a reference.
    """
    if kl_ctl:
        yield Decision(
            "actor.kl_estimator",
            options.kl_estimator,
            "the estimate as it is",
            "as in REINFORCE++ (arXiv:2501.03262, eq. 4); AReaL limits every token's estimate to [-10, 10]",
        )
    if options.mask_no_eos_with_zero:
        yield Decision(
            "actor.mask_no_eos_with_zero",
            "true",
            "completions that reach the length limit have reward 0 after actor.reward_norm, and stay in the loss",
            "as AReaL computes it; its description leaves them out of the loss, as overlong filtering does (DAPO, "
            "arXiv:2503.14476, section 3.4): actor.overlong_filtering=true",
        )
    for option, norm in (("actor.reward_norm", options.reward_norm), ("actor.adv_norm", options.adv_norm)):
        if norm is not None and _deviates_around_another_mean(norm):
            yield Decision(
                f"{option}.std_level",
                str(norm.std_level),
                f"the standard deviation of each {norm.std_level}, around its own mean",
                "as in LitePPO (arXiv:2508.08221, eq. 6); AReaL takes the deviation around the mean that is "
                "subtracted, or around 0 without one",
            )


def _deviates_around_another_mean(norm: NormConfig) -> bool:
    if norm.std_level is None or norm.scale != "deviation":
        return False
    return norm.mean_level != norm.std_level or norm.mean_leave1out
