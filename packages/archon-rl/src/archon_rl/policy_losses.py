"""From the options under ``actor`` to the policy loss, with its behaviour weight, proximal policy and masks."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields

from archon_core.contracts.decisions import Decision
from archon_core.plugins import PolicyLossSpec, registry
from archon_rl.config import PolicyOptions
from archon_rl.losses.behaviour import BehaviourWeight, RejectionSampling
from archon_rl.losses.m2po import SecondMomentMask
from archon_rl.losses.objective import TokenTerm
from archon_rl.losses.policy import ClippedPolicyTerm
from archon_rl.losses.policy_term import PolicyLoss, ProximalSource
from archon_rl.option_checks import loss_name

PROXIMAL: dict[str, ProximalSource] = {
    "recompute": "batch",
    "metrics": "batch",
    "loglinear": "interpolated",
    "reuse_train_logp": "current",
}
"""``prox_logp_method`` -> where the loss takes log pi_prox from."""


def build_policy_loss(options: PolicyOptions, changes: list[Decision], notes: list[Decision]) -> PolicyLoss:
    """The loss that ``actor`` asks for.

    Args:
        options: the ``actor`` section, without problems.
        changes: gets a decision for every setting that has no effect.
        notes: gets a decision for every formula on which a paper and AReaL differ.
    """
    spec = registry().get(PolicyLossSpec, loss_name(options))
    changes.extend(_unused_options(options, spec))
    masks = (SecondMomentMask(options.m2_threshold),) if options.m2_threshold is not None else ()
    if options.use_decoupled_loss:
        behaviour = BehaviourWeight(_rejection(options))
    else:
        behaviour = None
        changes.extend(_without_effect(options))
    loss = spec.load()(
        options,
        {
            "behaviour": behaviour,
            "proximal": PROXIMAL[options.prox_logp_method],
            "report_approximations": options.prox_logp_method == "metrics",
            "level": options.importance_sampling_level,
            "masks": tuple(mask.field for mask in masks),
        },
    )
    notes.extend(_differences(options, spec.name, loss.term))
    return PolicyLoss(loss.term, (*masks, *loss.masks))


def _rejection(options: PolicyOptions) -> RejectionSampling | None:
    rejection = options.rejection_sampling
    return None if rejection is None else RejectionSampling(**asdict(rejection))


def _unused_options(options: PolicyOptions, spec: PolicyLossSpec) -> list[Decision]:
    """Options of other losses that differ from their defaults."""
    others = dict.fromkeys(name for other in registry().all(PolicyLossSpec) for name in other.options)
    defaults = {f.name: f.default for f in fields(options) if f.default is not MISSING}
    return [
        Decision(f"actor.{name}", str(value), "not used", f"the policy loss {spec.name} has no such option")
        for name in others
        if name in defaults and name not in spec.options and (value := getattr(options, name)) != defaults[name]
    ]


def _without_effect(options: PolicyOptions) -> list[Decision]:
    reason = "without actor.use_decoupled_loss the loss compares the policy with the rollout's, and its weight is 1"
    found = []
    if options.rejection_sampling is not None:
        asked = ", ".join(f"{k}={v}" for k, v in asdict(options.rejection_sampling).items() if v is not None)
        found.append(Decision("actor.rejection_sampling", asked, "null", reason))
    if options.prox_logp_method != "recompute":
        found.append(Decision("actor.prox_logp_method", options.prox_logp_method, "not used", reason))
    return found


def _differences(options: PolicyOptions, name: str, term: TokenTerm) -> list[Decision]:
    """Where the published formula and AReaL's differ, and which of them this loss is."""
    found = []
    if options.use_decoupled_loss and options.rejection_sampling is None:
        found.append(
            Decision(
                "actor.rejection_sampling",
                "null",
                "weight pi_prox / pi_behave, without bounds",
                "the decoupled loss (arXiv:2505.24298) has this weight; AReaL leaves it out without rejection_sampling",
            )
        )
    masks_tokens = options.rejection_sampling is not None and options.rejection_sampling.action == "mask"
    if options.use_decoupled_loss and options.importance_sampling_level == "sequence" and masks_tokens:
        found.append(
            Decision(
                "actor.importance_sampling_level",
                "sequence",
                "mean over all trained tokens of a sequence",
                "as in GSPO (arXiv:2507.18071); AReaL leaves out the tokens that rejection_sampling masks",
            )
        )
    if options.m2_threshold is not None:
        found.append(
            Decision(
                "actor.m2_threshold",
                f"{options.m2_threshold:g}",
                "mean of (log pi - log pi_behave)^2 over each mini-batch, divided by all its tokens",
                "as in M2PO (arXiv:2510.01161); AReaL compares pi_prox with pi_behave, in every micro-batch, and "
                "divides by the tokens that are left",
            )
        )
        if isinstance(term, ClippedPolicyTerm) and term.eps_clip is None:
            found.append(
                Decision(
                    "actor.eps_clip",
                    "0.0",
                    "no clipping",
                    "M2PO's loss (arXiv:2510.01161) is not clipped; AReaL clips the ratio to 1",
                )
            )
    if name == "clip_cov":
        found.append(
            Decision(
                "actor.policy_loss",
                name,
                "leaves out the tokens with the largest covariances between the bounds",
                "without a draw; arXiv:2505.22617 draws among the tokens between the bounds, AReaL has no such loss",
            )
        )
    if options.prox_logp_method == "loglinear" and options.use_decoupled_loss:
        found.append(
            Decision(
                "actor.prox_logp_method",
                "loglinear",
                "(v_prox - v_behave) / (v - v_behave) with the weights' versions v before the update",
                "exact in the first update of a step; AReaL takes v_prox = v - 1",
            )
        )
    return found
