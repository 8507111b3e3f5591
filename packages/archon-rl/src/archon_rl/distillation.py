"""From the ``teacher`` section to a composition: the policy loss beside the KL to the teacher, or that KL alone."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_rl.algorithm import Algorithm
from archon_rl.config import PolicyOptions
from archon_rl.losses.distillation import DistillationTerm, WeightedTerm

PURE_OPTIONS = (
    "ppo_n_minibatches",
    "overlong_filtering",
    "recompute_logprob",
    "loss_aggregation",
    "kl_loss_coef",
    "kl_loss_estimator",
    "entropy_coef",
)
"""Options of policy optimisation that pure distillation reads."""


def with_teacher(algorithm: Algorithm, teacher: Any, decisions: list[Decision]) -> Algorithm:
    """``algorithm`` with the weights of the ``teacher`` section, or unchanged without one.

    Args:
        decisions: gets the decisions about the estimate of the KL.
    """
    if teacher is None:
        return algorithm
    decisions.extend(distillation_decisions(teacher, algorithm.temperature))
    weight = teacher.rl_loss_weight
    return replace(
        algorithm,
        loss=algorithm.loss if weight == 1 else WeightedTerm(algorithm.loss, weight),
        regularisers=(*algorithm.regularisers, distillation_term(teacher)),
    )


def distillation_term(teacher: Any) -> DistillationTerm:
    """The KL to the teacher that the ``teacher`` section asks for."""
    return DistillationTerm(teacher.distill_loss_weight, has_baseline=teacher.baseline == "batch")


def distillation_decisions(teacher: Any, temperature: float) -> list[Decision]:
    """What the distillation loss computes where sources differ, and the teacher's temperature."""
    if teacher.rl_loss_weight == 0:
        form = Decision(
            "teacher.rl_loss_weight",
            "0",
            "KL(actor || teacher) of each sampled token",
            "as AReaL; GKD (arXiv:2306.13649) sums over the whole vocabulary, MiniLLM (arXiv:2306.08543) adds the KL "
            "of later tokens",
        )
    else:
        form = Decision(
            "teacher.distill_loss_weight",
            f"{teacher.distill_loss_weight:g}",
            "a policy gradient with the advantage log p_teacher - log pi at each sampled token",
            "its expected gradient is that of KL(actor || teacher), the objective of KDRL (arXiv:2506.02208); AReaL "
            "minimises the mean of log pi - log p_teacher, whose expected gradient is 0",
        )
    found = [form]
    if teacher.baseline == "batch":
        found.append(
            Decision(
                "teacher.baseline",
                "batch",
                "subtracts the mean log-ratio of the batch's other sequences",
                "the expected gradient stays the same, with less variance; AReaL subtracts nothing",
            )
        )
    if teacher.temperature != temperature:
        reason = "the distributions of actor and teacher are compared at the temperature that gconfig samples with"
        found.append(Decision("teacher.temperature", f"{teacher.temperature:g}", f"{temperature:g}", reason))
    return found


def options_without_effect(options: PolicyOptions) -> list[Decision]:
    """Decisions for the options of policy optimisation that differ from their defaults and do nothing without a policy
    loss."""
    reason, defaults = "with teacher.rl_loss_weight=0 the actor learns from the teacher alone", PolicyOptions()
    return [
        Decision(f"actor.{f.name}", str(value), "not used", reason)
        for f in fields(PolicyOptions)
        if f.name not in PURE_OPTIONS and (value := getattr(options, f.name)) != getattr(defaults, f.name)
    ]
