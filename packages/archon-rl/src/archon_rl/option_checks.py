"""Options under ``actor`` that need one another, checked before torch is imported: a dry run finds them too.

Each function yields an option's name below ``actor`` and a found / allowed / fix sentence without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from archon_core.config.rules import shown_value
from archon_core.errors import ArchonError, did_you_mean
from archon_core.plugins import PolicyLossSpec, registry

SWITCHES = {"use_cispo_loss": "cispo", "use_sapo_loss": "sapo"}
"""AReaL's switch -> the loss that it chooses."""

LAMBDA_ARGUMENTS = {"length_adaptive": ("alpha", math.inf), "relative_position": ("q", 1.0)}
"""Form of ``gae_lambda`` -> its argument in ``gae_lambda_kwargs``, and the largest value of that."""

AREAL_LAMBDAS = {
    "areal.trainer.ppo.lambda_fn.vapo_length_adaptive_gae": "length_adaptive",
    "areal.trainer.ppo.lambda_fn.relative_position_gae_lambda": "relative_position",
}
"""AReaL's dotted name -> the form that it names. Archon imports no dotted name."""


def loss_name(options: Any) -> str:
    """The name of the loss that ``policy_loss`` or one of AReaL's switches chooses."""
    return next((loss for switch, loss in SWITCHES.items() if getattr(options, switch)), options.policy_loss)


def is_unclipped(options: Any) -> bool:
    """Whether the clipped loss has no bounds, as in M2PO."""
    return options.m2_threshold is not None and options.eps_clip == 0


def lambda_form(options: Any) -> str:
    """The name of the form of ``gae_lambda``, which is not a number."""
    return AREAL_LAMBDAS.get(options.gae_lambda, options.gae_lambda)


def policy_loss_problems(options: Any) -> Iterator[tuple[str, str]]:
    """What the policy loss does not allow."""
    chosen = [switch for switch in SWITCHES if getattr(options, switch)]
    if len(chosen) > 1:
        yield chosen[0], f"found true, and so is actor.{chosen[1]}; set one of them to false"
        return
    name = loss_name(options)
    if options.policy_loss not in ("clip", name):
        fix = "set it to false, or leave actor.policy_loss out"
        yield chosen[0], f"found true with actor.policy_loss={options.policy_loss}; {fix}"
        return
    try:
        spec = registry().get(PolicyLossSpec, name)
    except ArchonError as error:
        yield "policy_loss", str(error)
        return
    if options.importance_sampling_level == "sequence" and not spec.sequence_level:
        able = ", ".join(other.name for other in registry().all(PolicyLossSpec) if other.sequence_level)
        yield (
            "importance_sampling_level",
            f"found sequence with the policy loss {name}, whose ratios are per token; set it to token, or choose one "
            f"of {able}",
        )
    if options.use_decoupled_loss and not spec.decoupled:
        yield (
            "use_decoupled_loss",
            f"found true with the policy loss {name}, which compares the policy with the rollout's; set it to false",
        )
    if name == "cispo" and options.eps_clip_higher is None:
        yield (
            "eps_clip_higher",
            "found null; CISPO needs an upper bound of the ratio's distance from 1; set it, with actor.eps_clip=1.0 "
            "for no lower bound (arXiv:2506.13585)",
        )
    reuses = options.use_decoupled_loss and options.prox_logp_method == "reuse_train_logp"
    if reuses and options.ppo_n_minibatches > 1:
        yield (
            "prox_logp_method",
            f"found reuse_train_logp with actor.ppo_n_minibatches={options.ppo_n_minibatches}; after the first update, "
            "the training pass is no longer the policy of the start of the step; set actor.ppo_n_minibatches=1",
        )


def gae_lambda_problems(options: Any) -> Iterator[tuple[str, str]]:
    """Unknown forms of lambda, and arguments that do not fit."""
    asked, arguments = options.gae_lambda, options.gae_lambda_kwargs
    forms = ", ".join(LAMBDA_ARGUMENTS)
    if not isinstance(asked, str):
        if not 0 <= asked <= 1:
            yield "gae_lambda", f"found {asked}; allowed is from 0 to 1, or one of {forms}"
        return
    name = lambda_form(options)
    if name not in LAMBDA_ARGUMENTS:
        hint = did_you_mean(name, LAMBDA_ARGUMENTS) or "; dotted names are not imported" * ("." in name)
        *most, last = LAMBDA_ARGUMENTS
        yield "gae_lambda", f"found {asked!r}; allowed: a number, {', '.join(most)} or {last}{hint}"
        return
    argument, most = LAMBDA_ARGUMENTS[name]
    value = arguments.get(argument)
    valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most
    if set(arguments) != {argument} or not valid or not math.isfinite(value):
        limit = f" up to {most:g}" if math.isfinite(most) else ""
        yield (
            "gae_lambda_kwargs",
            f"found {shown_value(arguments)} with gae_lambda={asked}; it needs {{{argument}: NUMBER}}, above 0{limit}",
        )


def normalisation_problems(options: Any) -> Iterator[tuple[str, str]]:
    """Forms of normalisation that only rewards, or only rewards from 0 on, can have."""
    rewards, advantages = options.reward_norm, options.adv_norm
    if rewards is not None and rewards.scale == "mean" and (options.reward_bias < 0 or options.overlong_reward_penalty):
        yield (
            "reward_norm.scale",
            "found mean with rewards that actor.reward_bias or actor.overlong_reward_penalty moves below 0; dividing "
            "by their mean would turn their signs; set actor.reward_bias=0 and actor.overlong_reward_penalty=false",
        )
    if advantages is not None and (advantages.mean_weights, advantages.scale) != ("equal", "deviation"):
        yield (
            "adv_norm",
            f"found mean_weights={advantages.mean_weights} and scale={advantages.scale}, which are for rewards; set "
            "them in actor.reward_norm",
        )
