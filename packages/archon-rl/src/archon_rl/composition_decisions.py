"""The decisions of each algorithm's composition, from the configuration alone. Imports no torch.

Dry runs show them through ``archon_rl.preview``, and compositions record them, so that both name the same ones. The
functions take a configuration whose options have no problems (``run_problems``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError
from archon_engine.options.combinations import refuse_when_strict
from archon_rl.agents.checks import agent_decisions
from archon_rl.differences import (
    advantage_differences,
    critic_differences,
    group_norm_difference,
    lambda_differences,
    policy_loss_differences,
)
from archon_rl.preference_decisions import dpo_differences, granularity_changes, head_changes, unused_ipo_options
from archon_rl.sampled_policy import sampled_policy_decisions, temperature_changes, trained_temperature
from archon_rl.shared_reference import reference_decisions
from archon_rl.teacher_decisions import teacher_decisions
from archon_rl.teacher_options import is_pure_distillation
from archon_rl.without_effect import beside_policy_loss, without_policy_loss


@dataclass(frozen=True)
class Choices:
    """The decisions of a composition.

    Attributes:
        changes: settings without effect, or with another value than the configuration's; ``strict`` refuses them.
        notes: what the run computes where sources differ, or where the configuration leaves it open.
    """

    changes: tuple[Decision, ...] = ()
    notes: tuple[Decision, ...] = ()

    def record(self, actor: Any, decisions: list[Decision]) -> None:
        """Append all decisions.

        Args:
            actor: the section ``actor``.
            decisions: of the run so far.

        Raises:
            ConfigError: ``actor.archon.strict`` is set, and there are changes.
        """
        if refusal := refuse_when_strict(actor, self.changes, role="actor"):
            raise ConfigError(refusal)
        decisions.extend((*self.changes, *self.notes))


def grpo_choices(config: Any) -> Choices:
    """The decisions of ``grpo``."""
    return _policy_choices(config, relative=True)


def ppo_choices(config: Any) -> Choices:
    """The decisions of ``ppo``."""
    found = _policy_choices(config)
    return (
        found if config.critic is None else Choices(found.changes, (*found.notes, *critic_differences(config.critic)))
    )


def dpo_choices(config: Any) -> Choices:
    """The decisions of ``dpo``."""
    options = config.actor
    changes = (*granularity_changes(options), *unused_ipo_options(options))
    return Choices(changes, tuple(dpo_differences(options, config.ref)))


def rw_choices(config: Any) -> Choices:
    """The decisions of ``rw``."""
    return Choices((*granularity_changes(config.actor), *head_changes(config.actor)))


def effective_kl_ctl(options: Any, ref: Any) -> float:
    """The weight of the KL penalty: 0 without a reference."""
    return 0.0 if ref is None else float(options.kl_ctl)


def _policy_choices(config: Any, *, relative: bool = False) -> Choices:
    options, generation, ref = config.actor, config.gconfig, config.ref
    temperature, kl_ctl = temperature_changes(options, generation), effective_kl_ctl(options, ref)
    if is_pure_distillation(config.teacher):
        changes = (*without_policy_loss(options), *temperature)
        notes = [*sampled_policy_decisions(options, generation, clips=False)]
    else:
        changes = (*beside_policy_loss(options), *_kl_changes(options, ref), *temperature)
        notes = [
            *policy_loss_differences(options),
            *lambda_differences(options),
            *sampled_policy_decisions(options, generation, clips=True),
            *advantage_differences(options, kl_ctl),
            *(group_norm_difference(options) if relative else ()),
        ]
    if config.teacher is not None:
        notes += teacher_decisions(config.teacher, trained_temperature(generation))
    notes += agent_decisions(config)
    if effective_kl_ctl(options, ref) or options.kl_loss_coef:
        notes += reference_decisions(config)
    return Choices(changes, tuple(notes))


def _kl_changes(options: Any, ref: Any) -> Iterator[Decision]:
    if ref is None and options.kl_ctl:
        # AReaL's default is 0.1, and its configurations disable the penalty by leaving out `ref`.
        reason = "the KL needs a 'ref' section; 'ref: {}' takes the actor's initial weights"
        yield Decision("actor.kl_ctl", str(options.kl_ctl), "0.0", reason)
