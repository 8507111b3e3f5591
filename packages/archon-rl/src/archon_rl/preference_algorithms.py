"""Preference training: ``dpo`` and ``rw`` as compositions for ``trainer.preferences``, with checks of their options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol

from archon_core.contracts.decisions import Decision
from archon_core.contracts.loss import Loss
from archon_rl.composition_decisions import dpo_choices, rw_choices
from archon_rl.losses.preference import BradleyTerryLoss, PreferenceLoss
from archon_rl.preference_decisions import PAIR
from archon_rl.run_problems import preference_problems, refuse
from archon_train.model_sections import stray_value_head


@dataclass(frozen=True)
class PreferenceAlgorithm:
    """An algorithm that learns from pairs.

    Attributes:
        name: for messages.
        loss: reads whole pairs (``losses.preference``).
        needs_reference: whether the loss reads the reference model's log-probabilities.
        is_critic: whether the model has a value head.
        evaluated: metrics of the loss to report of held-out pairs, besides the loss.
    """

    name: str
    loss: Loss
    needs_reference: bool = False
    is_critic: bool = False
    evaluated: tuple[str, ...] = ("accuracy", "margin")

    def section(self, actor: Any) -> Any:
        """The section ``actor`` with the head that the algorithm trains, and pairs kept together."""
        return replace(actor, is_critic=self.is_critic, mb_spec=replace(actor.mb_spec, granularity=PAIR))


class PreferenceAlgorithmFactory(Protocol):
    """The ``target`` of an ``AlgorithmSpec`` whose trainer is ``trainer.preferences:PreferenceTrainer``."""

    def __call__(self, config: Any, decisions: list[Decision]) -> PreferenceAlgorithm:
        """The composition for ``config``. Appends a decision for every requested setting that it changes."""


def dpo(config: Any, decisions: list[Decision]) -> PreferenceAlgorithm:
    """Direct preference optimisation (arXiv:2305.18290), or IPO (arXiv:2310.12036) with ``actor.loss_type: ipo``.

    Raises:
        ConfigError: an option has an invalid value, or the model has a value head.
    """
    options = config.actor
    refuse(chain(preference_problems(config), stray_value_head("actor", config.actor)))
    dpo_choices(config).record(options, decisions)
    average = options.loss_type == "ipo" and options.ipo_logprobs == "mean"
    loss = PreferenceLoss(options.loss_type, options.beta, average, options.temperature)
    evaluated = ("accuracy", "margin", "policy_accuracy")
    return PreferenceAlgorithm("dpo", loss, needs_reference=True, evaluated=evaluated)


def rw(config: Any, decisions: list[Decision]) -> PreferenceAlgorithm:
    """A Bradley-Terry reward model: a value head whose value at the last token is the score.

    Raises:
        ConfigError: an option has an invalid value.
    """
    refuse(preference_problems(config))
    rw_choices(config).record(config.actor, decisions)
    return PreferenceAlgorithm("rw", BradleyTerryLoss(), is_critic=True)
