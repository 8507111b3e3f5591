"""From the options under ``actor`` to the policy loss, with its behaviour weight, proximal policy and masks."""

from __future__ import annotations

from dataclasses import asdict

from archon_core.plugins import PolicyLossSpec, registry
from archon_rl.config import PolicyOptions
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


def build_policy_loss(options: PolicyOptions) -> PolicyLoss:
    """The loss that ``actor`` asks for.

    Args:
        options: the ``actor`` section, without problems.
    """
    spec = registry().get(PolicyLossSpec, loss_name(options))
    masks = (SecondMomentMask(options.m2_threshold),) if options.m2_threshold is not None else ()
    behaviour = BehaviourWeight(_rejection(options)) if options.use_decoupled_loss else None
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
    return PolicyLoss(loss.term, (*masks, *loss.masks))


def _rejection(options: PolicyOptions) -> RejectionSampling | None:
    rejection = options.rejection_sampling
    return None if rejection is None else RejectionSampling(**asdict(rejection))
