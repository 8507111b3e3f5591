"""Named algorithms: builds an ``Algorithm`` from the options and validates them, before any engine is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

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
from archon_rl.run_problems import GROUP_NORM, policy_problems, refuse, untrained, value_head_problems
from archon_rl.sampled_policy import sampled_policy_decisions
from archon_rl.teacher_options import is_pure_distillation

Estimates = tuple[AdvantageEstimator, list[Decision]]
"""An advantage estimator, and decisions about its options."""


def sft(config: Any, decisions: list[Decision]) -> Algorithm:
    """Supervised fine-tuning: cross entropy, averaged over all answer tokens.

    Raises:
        ConfigError: the actor has a value head, or no optimizer.
    """
    refuse(chain(untrained("actor", config), value_head_problems(config)))
    return Algorithm(name="sft", loss=NegativeLogLikelihood(), temperature=config.actor.temperature)


def grpo(config: Any, decisions: list[Decision]) -> Algorithm:
    """Group relative policy optimisation (arXiv:2402.03300) and the variants that its options select, with distillation
    from ``teacher`` if the configuration has one.

    Raises:
        ConfigError: as ``policy_optimisation``.
    """
    refuse(policy_problems(config, relative=True))
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
    refuse(policy_problems(config))
    if is_pure_distillation(config.teacher):
        return _pure_distillation(config, decisions)
    changes: list[Decision] = []
    notes: list[Decision] = []
    policy = build_policy_loss(options, changes, notes)
    gae_lambda = build_gae_lambda(options, changes, notes)
    notes += sampled_policy_decisions(options, generation, clips=True)
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
        max_rounds=_sampling_rounds(config),
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
    decisions.extend((*changes, *sampled_policy_decisions(options, config.gconfig, clips=False)))
    decisions.extend(distillation_decisions(teacher, temperature))
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


def _sampling_rounds(config: Any) -> int:
    options = config.actor
    return options.dynamic_sampling_max_rounds if options.dynamic_sampling and not config.dynamic_bs else 1


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
        limit, tokens, factor = generation.max_new_tokens, options.overlong_tokens, options.overlong_penalty_factor
        overlong = OverlongPenalty(limit=limit, tokens=tokens, factor=factor)
    return RewardShaping(options.reward_scaling, options.reward_bias, options.reward_clip, overlong)


def _group_advantages(config: Any, kl_ctl: float, gae_lambda: GAELambda) -> Estimates:
    options, decisions = config.actor, []
    if options.reward_norm is None and options.adv_norm is None:
        options = replace(options, reward_norm=GROUP_NORM)
        decisions.append(
            Decision(
                option="actor.reward_norm",
                requested="null",
                effective="mean and deviation of the group",
                reason="grpo's advantages are relative to the group, and actor.adv_norm is null too",
            )
        )
    return GroupAdvantages(**estimator_fields(options, kl_ctl, gae_lambda)), decisions


def estimator_fields(options: PolicyOptions, kl_ctl: float, gae_lambda: GAELambda) -> dict[str, Any]:
    """The fields that ``GroupAdvantages`` and ``ValueAdvantages`` share."""
    return {
        "reward_norm": _normalisation(options.reward_norm),
        "adv_norm": _normalisation(options.adv_norm),
        "kl_ctl": kl_ctl,
        "kl_estimator": options.kl_estimator,
        "discount": options.discount,
        "gae_lambda": gae_lambda,
        "unit": options.gae_timestep_unit,
        "without_reward": TRUNCATED if options.mask_no_eos_with_zero else None,
    }


def _normalisation(config: NormConfig | None) -> Normalisation | None:
    if config is None:
        return None
    return Normalisation(
        mean_level=config.mean_level,
        std_level=config.std_level,
        leave_one_out=config.mean_leave1out,
        unbiased=config.std_unbiased,
        eps=config.eps,
        mean_weights=config.mean_weights,
        scale=config.scale,
    )
