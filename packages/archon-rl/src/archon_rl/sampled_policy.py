"""How the policy that samples may differ from the one that is trained, and what the loss makes of it.

``gconfig.frequency_penalty`` and ``gconfig.min_new_tokens`` change the distribution that tokens are drawn from. The
rollout's log-probabilities are those of that distribution, as SGLang returns them, so importance weights correct for
the difference; the trainer's have neither. Imports no torch.
"""

from __future__ import annotations

from typing import Any

from archon_core.config.rules import written_value
from archon_core.contracts.decisions import Decision


def trained_temperature(generation: Any) -> float:
    """The temperature of the distribution that is trained: that of sampling, and 1 for greedy sampling."""
    return 1.0 if generation.greedy else float(generation.temperature)


def temperature_changes(options: Any, generation: Any) -> list[Decision]:
    """The decision about a temperature of the actor that sampling does not have."""
    temperature = trained_temperature(generation)
    if options.temperature == temperature:
        return []
    reason = "training uses the temperature that gconfig samples with"
    return [Decision("actor.temperature", str(options.temperature), str(temperature), reason)]


def sampled_policy_decisions(options: Any, generation: Any, *, clips: bool) -> list[Decision]:
    """A decision for every sampling option that training does not have.

    Args:
        options: the ``actor`` section.
        generation: the ``gconfig`` section.
        clips: whether a policy loss limits the ratio to the rollout's policy; false for distillation.
    """
    absent = (("frequency_penalty", "penalty"), ("min_new_tokens", "minimum"))
    return [
        Decision(
            f"gconfig.{name}",
            written_value(getattr(generation, name)),
            "in sampling alone",
            f"the trained policy has no {what}; {_correction(options, clips)}",
        )
        for name, what in absent
        if getattr(generation, name)
    ]


def _correction(options: Any, clips: bool) -> str:
    if clips and options.use_decoupled_loss:
        return "the weight pi_prox / pi_behave of actor.use_decoupled_loss corrects for it"
    if options.recompute_logprob:
        return "actor.recompute_logprob takes the trainer's log-probabilities, so nothing corrects for it"
    return "the ratio to the rollout's log-probabilities corrects for it" + ", within the clip range" * clips
