"""Checks of the sections that describe models beside the actor, before a run starts. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
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
    elif section.init_from_scratch:
        yield f"{role}.init_from_scratch: found true, so reward {config.reward!r} gives random scores; leave it out"


def unused_models(config: Any, algorithm: AlgorithmSpec, reward_role: str | None) -> Iterator[Decision]:
    """Decisions about sections of models that no part of the run has.

    Args:
        config: the configuration of a run.
        algorithm: its algorithm.
        reward_role: section of the model that the reward runs; empty for none, ``None`` if the reward is unknown.
    """
    if config.critic is not None and "critic" not in algorithm.sections:
        reason = f"algorithm {algorithm.name} has no value model; algorithm=ppo trains one"
        yield Decision("critic", "a section", "not used", reason)
    if config.reward_model is None or reward_role is None:
        return
    if "inference_engine" not in algorithm.needs:
        reason = f"algorithm {algorithm.name} scores no completions"
        yield Decision("reward_model", "a section", "not used", reason)
    elif reward_role != "reward_model":
        yield Decision("reward_model", "a section", "not used", "the reward runs no model; reward=model does")


def stray_value_head(role: str, section: EngineConfig) -> Iterator[str]:
    """The problem of a value head on a model whose log-probabilities the run needs.

    Args:
        role: the model's section.
        section: its options.
    """
    if section.is_critic:
        other = ", or train a reward model with algorithm=rw" if role == "actor" else ""
        yield (
            f"{role}.is_critic: found true; a model with a value head has no log-probabilities, which this run needs; "
            f"leave it out{other}"
        )


def with_initial_weights(section: EngineConfig, actor: EngineConfig) -> EngineConfig:
    """A model's section with the actor's initial weights, unless it names others.

    ``init_from_scratch`` of the section draws random weights for the actor's architecture.
    """
    if section.path or section.model_config is not None:
        return section
    scratch = section.init_from_scratch or actor.init_from_scratch
    return replace(section, path=actor.path, model_config=actor.model_config, init_from_scratch=scratch)


def is_frozen(config: Any, role: str) -> bool:
    """Whether a run never trains the model of the section ``role``."""
    if role == "teacher":
        warm_start = getattr(config.teacher, "warm_start", None)
        return warm_start is None or not warm_start.steps
    return role in ("ref", "reward_model")


def engine_section(config: Any, role: str) -> EngineConfig:
    """The section ``role`` as its engine gets it: with the weights that it inherits, and without the optimizer of a
    frozen model."""
    section = getattr(config, role)
    if role in ("critic", "ref"):
        section = with_initial_weights(section, config.actor)
    return replace(section, optimizer=None) if is_frozen(config, role) else section


def critic_problems(critic: EngineConfig, model: ModelSpec | None, explicit: Collection[str]) -> Iterator[str]:
    """Why ``model``, if it is known, cannot have a value head, or the options do not ask for one."""
    if "critic.is_critic" in explicit and not critic.is_critic:
        yield "critic.is_critic: found false; the critic has a value head; leave it out, or set it to true"
    if model is not None and "critic" not in model.capabilities:
        yield (
            f"critic: found a model of {model.name!r}, which has no value head; set critic.path to a model that "
            "supports critic (`archon models`)"
        )
