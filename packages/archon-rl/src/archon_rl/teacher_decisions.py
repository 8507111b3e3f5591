"""Decisions about the distillation loss and the temperature of the teacher. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from archon_core.contracts.decisions import Decision


def teacher_decisions(teacher: Any, temperature: float) -> Iterator[Decision]:
    """What the distillation loss computes where sources differ, and the teacher's temperature.

    Args:
        teacher: the section ``teacher``.
        temperature: of the distribution that is trained.
    """
    if teacher.rl_loss_weight == 0:
        yield Decision(
            "teacher.rl_loss_weight",
            "0",
            "KL(actor || teacher) of each sampled token",
            "as AReaL; GKD (arXiv:2306.13649) sums over the whole vocabulary, MiniLLM (arXiv:2306.08543) adds the KL "
            "of later tokens",
        )
    else:
        yield Decision(
            "teacher.distill_loss_weight",
            f"{teacher.distill_loss_weight:g}",
            "a policy gradient with the advantage log p_teacher - log pi at each sampled token",
            "its expected gradient is that of KL(actor || teacher), the objective of KDRL (arXiv:2506.02208); AReaL "
            "minimises the mean of log pi - log p_teacher, whose expected gradient is 0",
        )
    if teacher.baseline == "batch":
        yield Decision(
            "teacher.baseline",
            "batch",
            "subtracts the mean log-ratio of the batch's other sequences",
            "the expected gradient stays the same, with less variance; AReaL subtracts nothing",
        )
    if teacher.temperature != temperature:
        reason = "the distributions of actor and teacher are compared at the temperature that gconfig samples with"
        yield Decision("teacher.temperature", f"{teacher.temperature:g}", f"{temperature:g}", reason)
