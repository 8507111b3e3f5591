"""Proximal policy optimisation with a critic: ``algorithm: ppo``."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_rl.advantages import ConstantLambda, GAELambda, ValueAdvantages
from archon_rl.algorithm import TRUNCATED, Algorithm, CriticTraining, DropTruncated
from archon_rl.composition_decisions import ppo_choices
from archon_rl.losses.value import ValueTerm
from archon_rl.presets import estimator_fields, policy_optimisation
from archon_rl.run_problems import policy_problems, refuse, value_problems
from archon_train.model_sections import missing_sections


def ppo(config: Any, decisions: list[Decision]) -> Algorithm:
    """PPO (arXiv:1707.06347) on completions, with advantages from a critic's values.

    The options under ``actor`` select the policy loss as they do for ``grpo``.

    Raises:
        ConfigError: there is no critic to train, an option has an invalid value, or two options contradict each other.
    """
    refuse(missing_sections(config, "ppo", ("critic",)))
    critic = config.critic
    refuse(chain(value_problems(config), policy_problems(config)))
    ppo_choices(config).record(config.actor, decisions)
    algorithm = policy_optimisation("ppo", config, _value_advantages)
    training = CriticTraining(
        loss=ValueTerm(critic.eps_clip),
        filters=(DropTruncated(),) if critic.mask_no_eos_with_zero else (),
        n_minibatches=critic.ppo_n_minibatches,
        warmup_steps=critic.warmup_steps,
    )
    return replace(algorithm, critic=training)


def _value_advantages(config: Any, kl_ctl: float, gae_lambda: GAELambda) -> ValueAdvantages:
    critic = config.critic
    return ValueAdvantages(
        **estimator_fields(config.actor, kl_ctl, gae_lambda),
        bootstrap=TRUNCATED if critic.bootstrap_truncated else None,
        returns_lambda=None if critic.gae_lambda is None else ConstantLambda(critic.gae_lambda),
    )
