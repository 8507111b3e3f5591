"""The engines of a run of reinforcement learning by role: the actor, and the models that the algorithm needs beside it.

To add a role: a field of ``RoleEngines``, an entry of ``SECTIONS``, and an entry of ``algorithm.ROLE_OF_FIELD``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from archon_rl.algorithm import Algorithm
from archon_rl.trainer.engines import build_train_engine, critic_config, reference_config
from archon_rl.trainer.sharing import SharedEngine
from archon_train.run.context import RunContext


@dataclass(frozen=True)
class RoleEngines:
    """The engines of a run; ``None`` for a role that the algorithm does not need.

    Attributes:
        actor: the trained policy.
        critic: the trained value model.
        ref: the frozen reference of the KL terms.
    """

    actor: SharedEngine
    critic: SharedEngine | None = None
    ref: SharedEngine | None = None


SECTIONS: Mapping[str, Callable[[Any, Any], Any]] = {"critic": critic_config, "ref": reference_config}
"""Role -> completes its section of the configuration with the actor's: ``(section, actor) -> section``."""


def build_role_engines(
    run: RunContext, actor: Any, algorithm: Algorithm, *, total_steps: int, stack: ExitStack
) -> RoleEngines:
    """Build the actor, and an engine for every role of the algorithm; ``stack`` closes them.

    Args:
        actor: the ``actor`` section, with the weights that training starts from.
        total_steps: training steps of the whole run.
    """

    def build(role: str, section: Any) -> SharedEngine:
        engine = build_train_engine(run, section, role=role, total_steps=algorithm.updates(role, total_steps))
        stack.callback(engine.close)
        return SharedEngine(engine, section.mb_spec.granularity, run.recordings)

    sections = {
        role: complete(getattr(run.config, role), actor)
        for role, complete in SECTIONS.items()
        if role in algorithm.roles
    }
    return RoleEngines(build("actor", actor), **{role: build(role, section) for role, section in sections.items()})
