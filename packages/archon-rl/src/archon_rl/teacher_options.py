"""The options of a teacher (``teacher``). Imports no torch: every configuration loads this module.

Names and defaults follow AReaL's ``TeacherConfig``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from archon_core.config.rules import NOT_NEGATIVE, one_of, option, shown_value
from archon_core.contracts.rollout import RolloutConfig
from archon_rl.config import WarmStartOptions

NO_SERVERS = RolloutConfig().backend
"""The backend of a section that names none; it runs on the trainer's ranks."""


@dataclass
class TeacherOptions:
    """Distillation from a frozen model (``teacher``): the loss pulls the actor towards the teacher's distribution, at
    the tokens of the actor's completions. The teacher may have another size and another layout than the actor; both
    need the same vocabulary.

    The objective is ``rl_loss_weight`` times the policy loss plus ``distill_loss_weight`` times the KL. Both are summed
    as ``actor.loss_aggregation`` says and divided by the same weight of the whole mini-batch. The two weights need not
    add up to 1.

    Attributes:
        engine_type: ``rollout``, AReaL's default, runs the teacher on inference servers, which score the actor's
            tokens; the trainer's ranks hold nothing of it. ``train`` runs it in a training engine, on the actor's
            ranks or on its own (``scheduling_strategy``).
        rollout: the servers, for ``engine_type: rollout``; with ``addresses``, running ones that serve ``path``.
            Options of sampling and of weight updates have no effect.
        offload: keep the teacher in host memory, except while it computes log-probabilities.
        rl_loss_weight: weight of the policy loss. 0 is pure distillation: it needs no reward, and groups may have one
            sample.
        distill_loss_weight: weight of KL(actor || teacher) per token; 0 only reports it.
        baseline: what is subtracted from a token's log-ratio to the teacher where it weighs the gradient. ``batch`` is
            the mean over the other sequences of the batch: the expected gradient stays the same, its variance is lower.
            ``none`` subtracts nothing, as AReaL does. Not in AReaL.
        warm_start: supervised steps that train the teacher at the start of the run, for a teacher without a checkpoint.
            The result is stored in the run folder. Not in AReaL.
    """

    engine_type: str = option("rollout", one_of("rollout", "train"))
    rollout: RolloutConfig | None = None
    offload: bool = False
    rl_loss_weight: float = option(1.0, NOT_NEGATIVE)
    distill_loss_weight: float = option(0.005, NOT_NEGATIVE)
    baseline: str = option("batch", one_of("batch", "none"))
    warm_start: WarmStartOptions = field(default_factory=WarmStartOptions)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from teacher_problems(self)


def teacher_problems(teacher: Any) -> Iterator[tuple[str, str]]:
    """Invalid combinations in the whole section, with the options of its engine."""
    if teacher.engine_type == "rollout":
        yield from _server_problems(teacher)
    if not teacher.path and teacher.model_config is None:
        yield (
            "path",
            "found none, and no teacher.model_config; set teacher.path to a checkpoint folder or hub id with the "
            "actor's vocabulary",
        )
    if teacher.rl_loss_weight == 0 and teacher.distill_loss_weight == 0:
        yield (
            "distill_loss_weight",
            "found 0 with teacher.rl_loss_weight=0, which leaves nothing to learn; set one of them above 0",
        )
    if teacher.optimizer is None and teacher.warm_start.steps:
        yield (
            "optimizer",
            f"found null with teacher.warm_start.steps={teacher.warm_start.steps}, which train the teacher; leave it "
            "out, or set teacher.warm_start.steps=0",
        )


def _server_problems(teacher: Any) -> Iterator[tuple[str, str]]:
    """What servers lack that are to have the teacher's weights."""
    if teacher.rollout is None or teacher.rollout.backend in ("", NO_SERVERS):
        found = "none" if teacher.rollout is None else repr(teacher.rollout.backend)
        yield (
            "rollout.backend",
            f"found {found} with teacher.engine_type=rollout, AReaL's default; set it to the teacher's servers, such "
            "as served:d1, or set teacher.engine_type=train, which runs the teacher on the actor's ranks",
        )
    if (not teacher.path or teacher.init_from_scratch) and not teacher.warm_start.steps:
        found = "no path" if not teacher.path else "init_from_scratch=true"
        yield (
            "path",
            f"found {found} with teacher.engine_type=rollout, whose servers load a checkpoint; set teacher.path to "
            "one, or teacher.warm_start.steps to train one",
        )
    if teacher.rollout is not None and teacher.rollout.addresses and teacher.warm_start.steps:
        yield (
            "rollout.addresses",
            f"found {shown_value(teacher.rollout.addresses)} with teacher.warm_start.steps={teacher.warm_start.steps}: "
            "running servers do not have the weights that these steps train; leave one of them out",
        )


def is_pure_distillation(teacher: Any) -> bool:
    """Whether a run with this ``teacher`` section, or ``None``, learns from the teacher alone."""
    return getattr(teacher, "rl_loss_weight", None) == 0
