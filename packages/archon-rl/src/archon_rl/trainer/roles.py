"""The engines of a run of reinforcement learning by role: the actor, and the models that the algorithm needs beside it.

To add a role: a field of ``RoleEngines``, an entry of ``SECTIONS``, and an entry of ``algorithm.ROLE_OF_FIELD``. The
trainer itself prepares the section of a role that needs more than the actor's section: the teacher's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.packed import OutputName
from archon_core.ranks.role_ranks import ACTOR
from archon_rl.algorithm import Algorithm
from archon_rl.shared_reference import is_actor_without_adapters
from archon_rl.trainer.engines import build_model_beside, build_train_engine, critic_config, reference_config
from archon_rl.trainer.remote_engine import RemoteEngine, begin_remote_engine
from archon_rl.trainer.served_teacher import ServedTeacher
from archon_rl.trainer.sharing import SharedEngine, WithoutAdapters
from archon_train.run.context import RunContext


@dataclass(frozen=True)
class RoleEngines:
    """The engines of a run; ``None`` for a role that the algorithm does not need.

    Attributes:
        actor: the trained policy.
        critic: the trained value model, on the actor's ranks or on others.
        ref: the frozen reference of the KL terms, likewise; or the actor without its adapters.
        teacher: the frozen model to distil from, likewise or on servers.
    """

    actor: SharedEngine
    critic: SharedEngine | RemoteEngine | None = None
    ref: SharedEngine | RemoteEngine | WithoutAdapters | None = None
    teacher: SharedEngine | RemoteEngine | ServedTeacher | None = None


SECTIONS: Mapping[str, Callable[[Any, Any], Any]] = {"critic": critic_config, "ref": reference_config}
"""Role -> completes its section of the configuration with the actor's: ``(section, actor) -> section``."""

PendingOutputs = Callable[[], dict[OutputName, Tensor]]
"""Gives the outputs of a forward pass that may have begun."""

NOTHING: Mapping[str, Any] = MappingProxyType({})


def build_role_engines(
    run: RunContext,
    actor: Any,
    algorithm: Algorithm,
    *,
    total_steps: int,
    stack: ExitStack,
    prepared: Mapping[str, Any] = NOTHING,
) -> RoleEngines:
    """Build the actor, and an engine for every role of the algorithm; ``stack`` closes them.

    Args:
        actor: the ``actor`` section, with the weights that training starts from.
        total_steps: training steps of the whole run.
        prepared: complete sections of further roles, or a teacher on servers.
    """
    sections = {
        role: complete(getattr(run.config, role), actor)
        for role, complete in SECTIONS.items()
        if role in algorithm.roles
    }
    is_shared = "ref" in sections and is_actor_without_adapters(run.config)
    if is_shared:
        del sections["ref"]
    sections |= prepared
    updates = {role: algorithm.updates(role, total_steps) for role in (ACTOR, *sections)}
    # Ranks of other roles build their models while these build theirs.
    elsewhere = {
        role: begin_remote_engine(
            run, section, role=role, objective=algorithm.objectives.get(role), total_steps=updates[role]
        )
        for role, section in sections.items()
        if role in run.links and not isinstance(section, ServedTeacher)
    }

    def build(role: str, section: Any) -> SharedEngine | RemoteEngine | ServedTeacher:
        if isinstance(section, ServedTeacher):
            return section
        if role in elsewhere:
            return elsewhere[role]()
        beside = build_model_beside(run, section, role=role, total_steps=updates[role])
        stack.callback(beside.engine.close)
        return beside

    engine = build_train_engine(run, actor, role=ACTOR, total_steps=updates[ACTOR])
    stack.callback(engine.close)
    policy = SharedEngine(engine, actor.mb_spec.granularity, run.recordings, shares_prefixes=actor.enable_tree_training)
    others: dict[str, Any] = {role: build(role, section) for role, section in sections.items()}
    if is_shared:
        others["ref"] = WithoutAdapters(policy)
    return RoleEngines(policy, **others)


def begin_forward(
    engine: SharedEngine | RemoteEngine | WithoutAdapters | ServedTeacher, batch: Batch, request: OutputRequest
) -> PendingOutputs:
    """Start a forward pass of a model on its own ranks; another model computes when the result is called."""
    if isinstance(engine, RemoteEngine):
        return engine.begin_forward(batch, request)
    return partial(engine.forward_batch, batch, request)
