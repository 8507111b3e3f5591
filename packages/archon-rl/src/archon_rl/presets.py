"""Named algorithms: builds an ``Algorithm`` from the options and validates them, before any engine is built."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from archon_core.config.validation import check_options
from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError
from archon_engine.options.combinations import refuse_when_strict
from archon_rl.advantages import GAELambda, GroupAdvantages, Normalisation
from archon_rl.algorithm import TRUNCATED, AdvantageEstimator, Algorithm, DropTruncated, MixedGroups
from archon_rl.config import NormConfig, PolicyOptions
from archon_rl.differences import advantage_differences
from archon_rl.distillation import distillation_decisions, distillation_term, options_without_effect, with_teacher
from archon_rl.gae_lambda import build_gae_lambda
from archon_rl.losses.aggregation import Aggregation, ConstantLength, SequenceMean, TokenMean
from archon_rl.losses.entropy import EntropyTerm
from archon_rl.losses.kl import KLTerm
from archon_rl.losses.objective import TokenTerm
from archon_rl.losses.supervised import NegativeLogLikelihood
from archon_rl.policy_losses import build_policy_loss
from archon_rl.reward_shaping import OverlongPenalty, RewardShaping
from archon_rl.sampled_policy import sampled_policy_decisions
from archon_rl.teacher_options import is_pure_distillation

Estimates = tuple[AdvantageEstimator, list[Decision]]
"""An advantage estimator, and decisions about its options."""


def sft(config: Any, decisions: list[Decision]) -> Algorithm:
    """Supervised fine-tuning: cross entropy, averaged over all answer tokens."""
    return Algorithm(name="sft", loss=NegativeLogLikelihood(), temperature=config.actor.temperature)


def grpo(config: Any, decisions: list[Decision]) -> Algorithm:
    """Group relative policy optimisation (arXiv:2402.03300) and the variants that its options select, with distillation
    from ``teacher`` if the configuration has one.

    Raises:
        ConfigError: as ``policy_optimisation``.
    """
    return policy_optimisation("grpo", config, decisions, _group_advantages)


def policy_optimisation(
    name: str, config: Any, decisions: list[Decision], advantages: Callable[[Any, float, GAELambda], Estimates]
) -> Algorithm:
    """The composition that the options under ``actor`` select.

    Args:
        name: of the algorithm.
        advantages: builds the estimator, and decisions about it, from the configuration, the weight of the KL penalty
            and lambda.

    Raises:
        ConfigError: an option has an invalid value, or two options contradict each other.
    """
    options, generation = config.actor, config.gconfig
    for _, text in check_options(options, "actor"):
        raise ConfigError(text)
    if is_pure_distillation(config.teacher):
        return _pure_distillation(config, decisions)
    changes: list[Decision] = []
    notes: list[Decision] = []
    policy = build_policy_loss(options, changes, notes)
    gae_lambda = build_gae_lambda(options, changes, notes)
    notes += sampled_policy_decisions(options, generation)
    kl_ctl, kl_loss_coef = _kl_coefficients(options, config.ref, changes)
    notes.extend(advantage_differences(options, kl_ctl))
    temperature = _temperature(options, generation, changes)
    if refusal := refuse_when_strict(options, changes, role="actor"):
        raise ConfigError(refusal)
    estimator, choices = advantages(config, kl_ctl, gae_lambda)
    decisions.extend((*changes, *notes, *choices))
    algorithm = Algorithm(
        name=name,
        loss=policy.term,
        masks=policy.masks,
        regularisers=_regularisers(options, kl_loss_coef),
        aggregation=_aggregation(options, generation),
        temperature=temperature,
        rewards=_reward_shaping(options, generation),
        advantages=estimator,
        selection=MixedGroups() if options.dynamic_sampling else None,
        max_rounds=_sampling_rounds(config, decisions),
        filters=(DropTruncated(),) if options.overlong_filtering else (),
        replace_logprobs=options.recompute_logprob and not options.use_decoupled_loss,
        n_minibatches=options.ppo_n_minibatches,
    )
    return with_teacher(algorithm, config.teacher, decisions)


def _pure_distillation(config: Any, decisions: list[Decision]) -> Algorithm:
    """On-policy distillation without a policy loss: no rewards, no advantages, and groups of any size."""
    options, teacher = config.actor, config.teacher
    changes = options_without_effect(options)
    temperature = _temperature(options, config.gconfig, changes)
    if refusal := refuse_when_strict(options, changes, role="actor"):
        raise ConfigError(refusal)
    decisions.extend((*changes, *distillation_decisions(teacher, temperature)))
    _, kl_loss_coef = _kl_coefficients(options, config.ref, [])
    return Algorithm(
        name="on-policy distillation",
        loss=distillation_term(teacher),
        regularisers=_regularisers(options, kl_loss_coef),
        aggregation=_aggregation(options, config.gconfig),
        temperature=temperature,
        filters=(DropTruncated(),) if options.overlong_filtering else (),
        replace_logprobs=options.recompute_logprob,
        n_minibatches=options.ppo_n_minibatches,
    )


def _temperature(options: PolicyOptions, generation: Any, decisions: list[Decision]) -> float:
    temperature = 1.0 if generation.greedy else generation.temperature
    if options.temperature != temperature:
        decisions.append(
            Decision(
                option="actor.temperature",
                requested=str(options.temperature),
                effective=str(temperature),
                reason="training uses the temperature that gconfig samples with",
            )
        )
    return temperature


def _regularisers(options: PolicyOptions, kl_loss_coef: float) -> tuple[TokenTerm, ...]:
    entropy = EntropyTerm(options.entropy_coef)
    return (entropy, KLTerm(kl_loss_coef, options.kl_loss_estimator)) if kl_loss_coef else (entropy,)


def _kl_coefficients(options: PolicyOptions, ref: Any, decisions: list[Decision]) -> tuple[float, float]:
    """``kl_ctl`` and ``kl_loss_coef``; both are 0 without a reference."""
    if ref is not None:
        return options.kl_ctl, options.kl_loss_coef
    if options.kl_loss_coef:
        raise ConfigError(
            f"actor.kl_loss_coef: found {options.kl_loss_coef}, which needs a reference model, and no 'ref' section; "
            "add one ('ref: {}' takes the actor's initial weights), or set actor.kl_loss_coef=0"
        )
    if options.kl_ctl:
        # AReaL's default is 0.1, and its configurations disable the penalty by leaving out `ref`.
        decisions.append(
            Decision(
                option="actor.kl_ctl",
                requested=str(options.kl_ctl),
                effective="0.0",
                reason="the KL needs a 'ref' section; 'ref: {}' takes the actor's initial weights",
            )
        )
    return 0.0, 0.0


def _sampling_rounds(config: Any, decisions: list[Decision]) -> int:
    options, n_samples = config.actor, config.gconfig.n_samples
    if not options.dynamic_sampling:
        if config.dynamic_bs:
            reason = "no group is left out of a batch without actor.dynamic_sampling=true"
            decisions.append(Decision("dynamic_bs", "true", "no effect", reason))
        return 1
    if n_samples < 2:
        raise ConfigError(
            f"actor.dynamic_sampling: found true with gconfig.n_samples={n_samples}; it leaves out prompts whose "
            "samples all have the same reward; set gconfig.n_samples to 2 or more, or actor.dynamic_sampling=false"
        )
    return 1 if config.dynamic_bs else options.dynamic_sampling_max_rounds


def _aggregation(options: PolicyOptions, generation: Any) -> Aggregation:
    match options.loss_aggregation:
        case "token":
            return TokenMean()
        case "sequence":
            return SequenceMean()
        case _:
            return ConstantLength(generation.max_new_tokens)


def _reward_shaping(options: PolicyOptions, generation: Any) -> RewardShaping:
    overlong = None
    if options.overlong_reward_penalty:
        tokens, factor = options.overlong_tokens, options.overlong_penalty_factor
        allowed = factor is not None and math.isfinite(factor)
        if tokens is None or not allowed or not 0 < tokens <= generation.max_new_tokens:
            raise ConfigError(
                f"actor.overlong_reward_penalty: found actor.overlong_tokens={tokens} and "
                f"actor.overlong_penalty_factor={factor}; set both, the tokens from 1 to "
                f"gconfig.max_new_tokens={generation.max_new_tokens}"
            )
        overlong = OverlongPenalty(limit=generation.max_new_tokens, tokens=tokens, factor=factor)
    return RewardShaping(options.reward_scaling, options.reward_bias, options.reward_clip, overlong)


def _group_advantages(config: Any, kl_ctl: float, gae_lambda: GAELambda) -> Estimates:
    options, decisions = config.actor, []
    if options.reward_norm is None and options.adv_norm is None:
        options = replace(options, reward_norm=NormConfig(mean_level="group", std_level="group"))
        decisions.append(
            Decision(
                option="actor.reward_norm",
                requested="null",
                effective="mean and deviation of the group",
                reason="grpo's advantages are relative to the group, and actor.adv_norm is null too",
            )
        )
    return GroupAdvantages(**estimator_fields(options, config.gconfig, kl_ctl, gae_lambda)), decisions


def estimator_fields(options: PolicyOptions, generation: Any, kl_ctl: float, gae_lambda: GAELambda) -> dict[str, Any]:
    """The fields that ``GroupAdvantages`` and ``ValueAdvantages`` share.

    Raises:
        ConfigError: a normalisation compares the samples of a prompt, and there is one.
    """
    return {
        "reward_norm": _normalisation("actor.reward_norm", options.reward_norm, generation.n_samples),
        "adv_norm": _normalisation("actor.adv_norm", options.adv_norm, generation.n_samples),
        "kl_ctl": kl_ctl,
        "kl_estimator": options.kl_estimator,
        "discount": options.discount,
        "gae_lambda": gae_lambda,
        "unit": options.gae_timestep_unit,
        "without_reward": TRUNCATED if options.mask_no_eos_with_zero else None,
    }


def _normalisation(option: str, config: NormConfig | None, n_samples: int) -> Normalisation | None:
    if config is None:
        return None
    if "group" in (config.mean_level, config.std_level):
        if n_samples < 2:
            raise ConfigError(
                f"{option}: found level 'group', which compares the samples of a prompt, and gconfig.n_samples="
                f"{n_samples}; set gconfig.n_samples to 2 or more"
            )
        if config.group_size not in (None, n_samples):
            raise ConfigError(
                f"{option}.group_size: found {config.group_size}; allowed is gconfig.n_samples={n_samples}; "
                "leave it out, or set it to '${gconfig.n_samples}'"
            )
    return Normalisation(
        mean_level=config.mean_level,
        std_level=config.std_level,
        leave_one_out=config.mean_leave1out,
        unbiased=config.std_unbiased,
        eps=config.eps,
        mean_weights=config.mean_weights,
        scale=config.scale,
    )
