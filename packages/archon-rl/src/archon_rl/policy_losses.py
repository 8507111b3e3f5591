"""From the options under ``actor`` to the policy loss, with its behaviour weight, proximal policy and masks."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields

from archon_core.contracts.decisions import Decision
from archon_core.plugins import PolicyLossSpec, registry
from archon_rl.config import PolicyOptions
from archon_rl.differences import policy_loss_differences
from archon_rl.losses.behaviour import BehaviourWeight, RejectionSampling
from archon_rl.losses.m2po import SecondMomentMask
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
    notes.extend(policy_loss_differences(options, spec.name, loss.term))
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
