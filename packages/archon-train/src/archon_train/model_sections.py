"""Checks of the sections that describe models beside the actor, before a run starts. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine_config import EngineConfig
from archon_core.contracts.model import ModelSpec
from archon_core.contracts.train import AlgorithmSpec


def missing_sections(config: Any, algorithm: str, sections: Collection[str]) -> Iterator[str]:
    """Problems: models that an algorithm needs, and the configuration does not have.

    Args:
        config: the configuration of a run.
        algorithm: its name, for messages.
        sections: the sections of the models that it needs.
    """
    for section in sections:
        if getattr(config, section, None) is None:
            yield (
                f"{section}: found no section, and algorithm {algorithm!r} needs one; add '{section}: {{}}', "
                "which starts from the actor's initial weights, or choose another algorithm"
            )


def missing_reward_model(config: Any, role: str) -> Iterator[str]:
    """The problem of a reward whose model, in the section ``role``, has no checkpoint."""
    section = getattr(config, role, None)
    if section is None or not section.path:
        yield (
            f"{role}.path: found none, and reward {config.reward!r} needs a checkpoint; set it to the export folder "
            "of a run of algorithm=rw"
        )


def unused_reward_model(config: Any, role: str) -> Iterator[Decision]:
    """The decision about a section ``reward_model`` that the reward does not run.

    Args:
        config: the configuration of a run.
        role: section of the model that the reward runs; empty for none.
    """
    if config.reward_model is not None and role != "reward_model":
        yield Decision("reward_model", "a model", "no effect", "the reward runs no model; reward=model does")


def unused_critic(config: Any, algorithm: AlgorithmSpec) -> Iterator[Decision]:
    """The decision about a critic that the algorithm does not train."""
    if config.critic is not None and "critic" not in algorithm.sections:
        reason = f"algorithm {algorithm.name} has no value model; algorithm=ppo trains one"
        yield Decision("critic", "a section", "not used", reason)


def stray_value_head(role: str, section: EngineConfig, *, samples: bool) -> Iterator[str]:
    """The problem of a value head on a model whose log-probabilities the run needs.

    Args:
        role: the model's section.
        section: its options.
        samples: whether the run samples with the actor.
    """
    if section.is_critic and (role in ("ref", "teacher") or (role == "actor" and samples)):
        yield (
            f"{role}.is_critic: found true; a model with a value head has no log-probabilities, which this run needs; "
            "leave it out"
        )


def critic_problems(critic: EngineConfig, model: ModelSpec | None, explicit: Collection[str]) -> Iterator[str]:
    """Why ``model``, if it is known, cannot have a value head, or the options do not ask for one."""
    if "critic.is_critic" in explicit and not critic.is_critic:
        yield "critic.is_critic: found false; the critic has a value head; leave it out, or set it to true"
    if model is not None and "critic" not in model.capabilities:
        yield (
            f"critic: found a model of {model.name!r}, which has no value head; set critic.path to a model that "
            "supports critic (`archon models`)"
        )
