"""A teacher on inference servers (``teacher.engine_type: rollout``), as the plan of a run sees it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from operator import attrgetter
from typing import Any

from archon_core.config.rules import written_value
from archon_core.contracts.decisions import Decision
from archon_core.contracts.rollout import RolloutConfig
from archon_core.layout import Layout

TEACHER_SERVERS = "teacher.rollout"
"""The section of the servers, and their role in layouts and plans."""

READ = ("path", "dtype", "mb_spec.max_tokens_per_mb", "archon.model")
"""Options of the teacher's training engine that its servers also use."""

ENGINE_PREFIXES = ("backend", "archon.", "mb_spec.", "optimizer.", "offload")
"""Options of a training engine."""

UNUSED_BY_SERVERS = {
    "return_routed_experts": "a teacher samples nothing",
    "max_head_offpolicyness": "a teacher samples nothing",
    "max_concurrent_rollouts": "a teacher samples nothing",
    "queue_size": "a teacher samples nothing",
    "consumer_batch_size": "a teacher samples nothing",
    "interruption": "a teacher samples nothing",
    "pause_grace_period": "a teacher samples nothing",
    "check_trajectory_format": "a teacher samples nothing",
    "dump_to_file": "a teacher samples nothing",
    "enable_rollout_tracing": "a teacher samples nothing",
    "weight_transport": "a teacher's weights never change",
    "weight_bucket_mb": "a teacher's weights never change",
    "weight_timeout": "a teacher's weights never change",
    "weight_canary": "a teacher's weights never change",
    "newcomer_weights": "a teacher's weights never change",
    "skip_unchanged": "a teacher's weights never change",
    "use_lora": "a teacher's weights never change",
}
"""Options of ``rollout`` without a meaning for frozen weights -> why."""


def teacher_servers(config: Any) -> RolloutConfig | None:
    """The servers of the run's teacher; ``None`` without any."""
    teacher = config.teacher
    if getattr(teacher, "engine_type", None) != "rollout":
        return None
    servers: RolloutConfig | None = teacher.rollout
    return servers


def trains_teacher(config: Any) -> bool:
    """Whether the teacher runs in a training engine: all the time, or for its supervised steps."""
    if config.teacher is None:
        return False
    return teacher_servers(config) is None or config.teacher.warm_start.steps > 0


def explain_no_scorer(layout: Layout) -> str:
    """The message about servers that cannot be a teacher's."""
    return (
        f"{TEACHER_SERVERS}.backend: found {layout}, which cannot score with frozen weights; allowed are servers that "
        "can, such as served:d1; or set teacher.engine_type=train"
    )


def unused_teacher_options(config: Any, explicit: Collection[str]) -> Iterator[Decision]:
    """Decisions for options that the user wrote and that have no effect where the teacher runs."""
    teacher = config.teacher
    if teacher is None:
        return
    if getattr(teacher, "engine_type", "train") == "train":
        if getattr(teacher, "rollout", None) is not None:
            reason = "teacher.engine_type=train runs the teacher in a training engine"
            yield Decision(TEACHER_SERVERS, teacher.rollout.backend, "no effect", reason)
        return
    for name, reason in UNUSED_BY_SERVERS.items():
        if f"{TEACHER_SERVERS}.{name}" in explicit:
            yield Decision(
                f"{TEACHER_SERVERS}.{name}", written_value(getattr(teacher.rollout, name)), "no effect", reason
            )
    if trains_teacher(config):
        return
    for option in sorted(explicit):
        name = option.removeprefix("teacher.")
        if name != option and name not in READ and name.startswith(ENGINE_PREFIXES):
            reason = "teacher.engine_type=rollout runs the teacher on servers, not in a training engine"
            yield Decision(option, written_value(attrgetter(option)(config)), "no effect", reason)
