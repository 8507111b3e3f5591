"""From the options under ``actor`` to the policy loss, with its behaviour weight, proximal policy and masks."""

from __future__ import annotations

from dataclasses import asdict

from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError
from archon_core.plugins import PolicyLossSpec, registry
from archon_rl.config import PolicyOptions
from archon_rl.losses.behaviour import BehaviourWeight, RejectionSampling
from archon_rl.losses.m2po import SecondMomentMask
from archon_rl.losses.policy_term import PolicyLoss, ProximalSource

SWITCHES = {"use_cispo_loss": "cispo", "use_sapo_loss": "sapo"}
"""AReaL's switch -> the loss that it chooses."""

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
        options: the ``actor`` section.
        changes: gets a decision for every setting that has no effect.
        notes: gets a decision for every formula on which a paper and AReaL differ.

    Raises:
        ConfigError: the options contradict each other.
    """
    spec = registry().get(PolicyLossSpec, loss_name(options))
    _check(options, spec)
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
    notes.extend(_differences(options, spec.name))
    return PolicyLoss(loss.term, (*masks, *loss.masks))


def loss_name(options: PolicyOptions) -> str:
    """The name of the loss that ``policy_loss`` or one of AReaL's switches chooses."""
    chosen = [switch for switch in SWITCHES if getattr(options, switch)]
    if len(chosen) > 1:
        raise ConfigError(f"actor.{chosen[0]}: found true, and so is actor.{chosen[1]}; set one of them to false")
    if not chosen:
        return options.policy_loss
    name = SWITCHES[chosen[0]]
    if options.policy_loss not in ("clip", name):
        raise ConfigError(
            f"actor.{chosen[0]}: found true with actor.policy_loss={options.policy_loss}; set it to false, or leave "
            "actor.policy_loss out"
        )
    return name


def _check(options: PolicyOptions, spec: PolicyLossSpec) -> None:
    if options.importance_sampling_level == "sequence" and not spec.sequence_level:
        able = ", ".join(other.name for other in registry().all(PolicyLossSpec) if other.sequence_level)
        raise ConfigError(
            f"actor.importance_sampling_level: found sequence with the policy loss {spec.name}, whose ratios are per "
            f"token; set it to token, or choose one of {able}"
        )
    if options.use_decoupled_loss and not spec.decoupled:
        raise ConfigError(
            f"actor.use_decoupled_loss: found true with the policy loss {spec.name}, which compares the policy with "
            "the rollout's; set it to false"
        )
    reuses = options.use_decoupled_loss and options.prox_logp_method == "reuse_train_logp"
    if reuses and options.ppo_n_minibatches > 1:
        raise ConfigError(
            "actor.prox_logp_method: found reuse_train_logp with actor.ppo_n_minibatches="
            f"{options.ppo_n_minibatches}; after the first update, the training pass is no longer the policy of the "
            "start of the step; set actor.ppo_n_minibatches=1"
        )


def _rejection(options: PolicyOptions) -> RejectionSampling | None:
    rejection = options.rejection_sampling
    return None if rejection is None else RejectionSampling(**asdict(rejection))


def _without_effect(options: PolicyOptions) -> list[Decision]:
    reason = "without actor.use_decoupled_loss the loss compares the policy with the rollout's, and its weight is 1"
    found = []
    if options.rejection_sampling is not None:
        asked = ", ".join(f"{k}={v}" for k, v in asdict(options.rejection_sampling).items() if v is not None)
        found.append(Decision("actor.rejection_sampling", asked, "null", reason))
    if options.prox_logp_method != "recompute":
        found.append(Decision("actor.prox_logp_method", options.prox_logp_method, "not used", reason))
    return found


def _differences(options: PolicyOptions, name: str) -> list[Decision]:
    """Where the published formula and AReaL's differ, and which of them this loss is."""
    found = []
    if options.use_decoupled_loss and options.rejection_sampling is None:
        found.append(
            Decision(
                "actor.rejection_sampling",
                "null",
                "weight pi_prox / pi_behave, without bounds",
                "the decoupled loss (arXiv:2505.24298, eq. 5) has this weight; AReaL leaves it out without "
                "rejection_sampling",
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
        if options.eps_clip == 0 and name == "clip":
            found.append(
                Decision(
                    "actor.eps_clip",
                    "0.0",
                    "no clipping",
                    "M2PO's loss (arXiv:2510.01161) is not clipped; AReaL clips the ratio to 1",
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
