"""Preference training: ``dpo`` and ``rw`` as compositions for ``trainer.preferences``, with checks of their options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol

from archon_core.contracts.decisions import Decision
from archon_core.contracts.loss import Loss
from archon_core.errors import ConfigError
from archon_engine.options.combinations import refuse_when_strict
from archon_rl.losses.preference import BradleyTerryLoss, PreferenceLoss
from archon_rl.run_problems import preference_problems, refuse, value_head_problems

PAIR = 2
"""Sequences of a pair, which stay together."""


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
    refuse(chain(preference_problems(config), value_head_problems(config)))
    _record_changes(options, _granularity(options), decisions)
    if options.loss_type == "ipo":
        decisions.append(_ipo_form(options.ipo_logprobs))
    elif options.ipo_logprobs != "mean":
        reason = "actor.loss_type is sigmoid, whose log-probabilities are sums"
        decisions.append(Decision("actor.ipo_logprobs", options.ipo_logprobs, "no effect", reason))
    if config.ref is None:
        reason = "DPO compares with the policy before training; AReaL compares with a log-probability of 0 instead"
        decisions.append(Decision("ref", "left out", "the actor's initial weights", reason))
    average = options.loss_type == "ipo" and options.ipo_logprobs == "mean"
    loss = PreferenceLoss(options.loss_type, options.beta, average, options.temperature)
    evaluated = ("accuracy", "margin", "policy_accuracy")
    return PreferenceAlgorithm("dpo", loss, needs_reference=True, evaluated=evaluated)


def rw(config: Any, decisions: list[Decision]) -> PreferenceAlgorithm:
    """A Bradley-Terry reward model: a value head whose value at the last token is the score.

    Raises:
        ConfigError: an option has an invalid value.
    """
    options = config.actor
    refuse(preference_problems(config))
    changes = _granularity(options)
    if not options.is_critic:
        changes.append(Decision("actor.is_critic", "false", "true", "a reward model has a value head"))
    _record_changes(options, changes, decisions)
    return PreferenceAlgorithm("rw", BradleyTerryLoss(), is_critic=True)


def _record_changes(options: Any, changes: list[Decision], decisions: list[Decision]) -> None:
    if refusal := refuse_when_strict(options, changes, role="actor"):
        raise ConfigError(refusal)
    decisions.extend(changes)


def _granularity(options: Any) -> list[Decision]:
    asked = options.mb_spec.granularity
    if asked == PAIR:
        return []
    reason = "the two sequences of a pair share a micro-batch, and pairs are independent"
    return [Decision("actor.mb_spec.granularity", str(asked), str(PAIR), reason)]


def _ipo_form(form: str) -> Decision:
    effective, reason = {
        "mean": (
            "log-probabilities averaged over the answer's tokens",
            "TRL and AReaL average, as the paper's authors advised, so that beta does not depend on length; eq. 17 of "
            "arXiv:2310.12036 sums: actor.ipo_logprobs=sum",
        ),
        "sum": (
            "log-probabilities summed over the answer's tokens",
            "eq. 17 of arXiv:2310.12036 sums; TRL and AReaL average: actor.ipo_logprobs=mean",
        ),
    }[form]
    return Decision("actor.ipo_logprobs", form, effective, reason)
