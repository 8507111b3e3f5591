"""Proximal policy optimisation with a critic: ``algorithm: ppo``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_rl.advantages import ConstantLambda, GAELambda, ValueAdvantages
from archon_rl.algorithm import TRUNCATED, Algorithm, CriticTraining, DropTruncated
from archon_rl.losses.value import ValueTerm
from archon_rl.presets import Estimates, estimator_fields, policy_optimisation
from archon_rl.run_problems import refuse, value_problems
from archon_train.model_sections import missing_sections


def ppo(config: Any, decisions: list[Decision]) -> Algorithm:
    """PPO (arXiv:1707.06347) on completions, with advantages from a critic's values.

    The options under ``actor`` select the policy loss as they do for ``grpo``.

    Raises:
        ConfigError: there is no critic to train, an option has an invalid value, or two options contradict each other.
    """
    refuse(missing_sections(config, "ppo", ("critic",)))
    critic = config.critic
    refuse(value_problems(config))
    algorithm = policy_optimisation("ppo", config, decisions, _value_advantages)
    decisions.extend(_notes(critic))
    training = CriticTraining(
        loss=ValueTerm(critic.eps_clip),
        filters=(DropTruncated(),) if critic.mask_no_eos_with_zero else (),
        n_minibatches=critic.ppo_n_minibatches,
        warmup_steps=critic.warmup_steps,
    )
    return replace(algorithm, critic=training)


def _value_advantages(config: Any, kl_ctl: float, gae_lambda: GAELambda) -> Estimates:
    critic = config.critic
    return (
        ValueAdvantages(
            **estimator_fields(config.actor, kl_ctl, gae_lambda),
            bootstrap=TRUNCATED if critic.bootstrap_truncated else None,
            returns_lambda=None if critic.gae_lambda is None else ConstantLambda(critic.gae_lambda),
        ),
        [],
    )


def _notes(critic: Any) -> list[Decision]:
    """Where AReaL computes something else, and options that values do not have."""
    note = partial(Decision, "critic.bootstrap_truncated", str(critic.bootstrap_truncated).lower())
    found = []
    if critic.bootstrap_truncated:
        effective = "completions that reach the length limit continue with the value after their last token"
    else:
        effective = "a completion ends with value 0"
    found.append(note(effective, "AReaL continues the sequences that are as long as its padded batch"))
    if critic.mask_no_eos_with_zero:
        found.append(
            Decision(
                "critic.mask_no_eos_with_zero",
                "true",
                "the critic does not learn from completions that reach the length limit",
                "AReaL documents the option and does not use it",
            )
        )
    if critic.temperature != 1.0:
        found.append(
            Decision("critic.temperature", f"{critic.temperature:g}", "not used", "values have no temperature")
        )
    return found
