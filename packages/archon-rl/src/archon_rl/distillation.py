"""From the ``teacher`` section to a composition: the policy loss beside the KL to the teacher, or that KL alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from archon_rl.algorithm import Algorithm
from archon_rl.losses.distillation import DistillationTerm, WeightedTerm


def with_teacher(algorithm: Algorithm, teacher: Any) -> Algorithm:
    """``algorithm`` with the weights of the ``teacher`` section, or unchanged without one."""
    if teacher is None:
        return algorithm
    weight = teacher.rl_loss_weight
    return replace(
        algorithm,
        loss=algorithm.loss if weight == 1 else WeightedTerm(algorithm.loss, weight),
        regularisers=(*algorithm.regularisers, distillation_term(teacher)),
    )


def distillation_term(teacher: Any) -> DistillationTerm:
    """The KL to the teacher that the ``teacher`` section asks for."""
    return DistillationTerm(teacher.distill_loss_weight, has_baseline=teacher.baseline == "batch")
