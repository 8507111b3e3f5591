"""Named algorithms: builds an ``Algorithm`` from the options and validates them, before any engine is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_rl.advantages import GAELambda, GroupAdvantages, Normalisation
from archon_rl.algorithm import TRUNCATED, AdvantageEstimator, Algorithm, DropTruncated, MixedGroups
from archon_rl.composition_decisions import effective_kl_ctl, grpo_choices
from archon_rl.config import NormConfig, PolicyOptions
from archon_rl.distillation import distillation_term, with_teacher
from archon_rl.gae_lambda import build_gae_lambda
from archon_rl.losses.aggregation import Aggregation, ConstantLength, SequenceMean, TokenMean
from archon_rl.losses.entropy import EntropyTerm
from archon_rl.losses.kl import KLTerm
from archon_rl.losses.objective import TokenTerm
from archon_rl.losses.supervised import NegativeLogLikelihood
from archon_rl.policy_losses import build_policy_loss
from archon_rl.reward_shaping import OverlongPenalty, RewardShaping
from archon_rl.run_problems import GROUP_NORM, policy_problems, refuse, untrained
from archon_rl.sampled_policy import trained_temperature
from archon_rl.teacher_options import is_pure_distillation
from archon_train.model_sections import stray_value_head


def sft(config: Any, decisions: list[Decision]) -> Algorithm:
    """Supervised fine-tuning: cross entropy, averaged over all answer tokens.

    Raises:
        ConfigError: the actor has a value head, or no optimizer.
    """
    refuse(chain(untrained("actor", config), stray_value_head("actor", config.actor)))
    return Algorithm(name="sft", loss=NegativeLogLikelihood(), temperature=config.actor.temperature)


def grpo(config: Any, decisions: list[Decision]) -> Algorithm:
    """Group relative policy optimisation (arXiv:2402.03300) and the variants that its options select, with distillation
    from ``teacher`` if the configuration has one.

    Raises:
        ConfigError: as ``policy_optimisation``.
    """
    refuse(policy_problems(config, relative=True))
    grpo_choices(config).record(config.actor, decisions)
    return policy_optimisation("grpo", config, _group_advantages)


def policy_optimisation(
    name: str, config: Any, advantages: Callable[[Any, float, GAELambda], AdvantageEstimator]
) -> Algorithm:
    """The composition that the options under ``actor`` select.

    Args:
        name: of the algorithm.
        config: the configuration, whose options have no problems (``run_problems``).
        advantages: builds the estimator from the configuration, the weight of the KL penalty and lambda.
    """
    options, generation = config.actor, config.gconfig
    if is_pure_distillation(config.teacher):
        return _pure_distillation(config)
    policy = build_policy_loss(options)
    estimator = advantages(config, effective_kl_ctl(options, config.ref), build_gae_lambda(options))
    algorithm = Algorithm(
        name=name,
        loss=policy.term,
        masks=policy.masks,
        regularisers=_regularisers(options),
        aggregation=_aggregation(options, generation),
        temperature=trained_temperature(generation),
        rewards=_reward_shaping(options, generation),
        advantages=estimator,
        selection=MixedGroups() if options.dynamic_sampling else None,
        max_rounds=_sampling_rounds(config),
        filters=(DropTruncated(),) if options.overlong_filtering else (),
        replace_logprobs=options.recompute_logprob and not options.use_decoupled_loss,
        n_minibatches=options.ppo_n_minibatches,
    )
    return with_teacher(algorithm, config.teacher)


def _pure_distillation(config: Any) -> Algorithm:
    """On-policy distillation without a policy loss: no rewards, no advantages, and groups of any size."""
    options = config.actor
    return Algorithm(
        name="on-policy distillation",
        loss=distillation_term(config.teacher),
        regularisers=_regularisers(options),
        aggregation=_aggregation(options, config.gconfig),
        temperature=trained_temperature(config.gconfig),
        filters=(DropTruncated(),) if options.overlong_filtering else (),
        replace_logprobs=options.recompute_logprob,
        n_minibatches=options.ppo_n_minibatches,
    )


def _regularisers(options: PolicyOptions) -> tuple[TokenTerm, ...]:
    entropy = EntropyTerm(options.entropy_coef)
    if not options.kl_loss_coef:
        return (entropy,)
    return entropy, KLTerm(options.kl_loss_coef, options.kl_loss_estimator)


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


def _group_advantages(config: Any, kl_ctl: float, gae_lambda: GAELambda) -> GroupAdvantages:
    options = config.actor
    if options.reward_norm is None and options.adv_norm is None:
        options = replace(options, reward_norm=GROUP_NORM)
    return GroupAdvantages(**estimator_fields(options, kl_ctl, gae_lambda))


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
