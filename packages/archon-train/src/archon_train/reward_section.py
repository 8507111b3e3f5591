"""Checks the section of the model that a reward runs, before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from archon_core.contracts.data import RewardSpec
from archon_core.contracts.decisions import Decision
from archon_core.plugins.own_functions import OwnFunction


def reward_section_problems(config: Any, chosen: RewardSpec | OwnFunction) -> Iterator[str]:
    """What is missing in the section of the reward's model."""
    role = chosen.role if isinstance(chosen, RewardSpec) else ""
    section = getattr(config, role, None) if role else None
    if role and (section is None or not section.path):
        yield (
            f"{role}.path: found none, and reward {config.reward!r} needs a checkpoint; set it to the export folder "
            "of a run of algorithm=rw"
        )


def unused_reward_model(config: Any, chosen: RewardSpec | OwnFunction | None) -> list[Decision]:
    """The decision about a section ``reward_model`` that the reward does not run."""
    if config.reward_model is None or getattr(chosen, "role", "") == "reward_model":
        return []
    reason = "the reward runs no model; reward=model does"
    return [Decision("reward_model", "a model", "no effect", reason)]
