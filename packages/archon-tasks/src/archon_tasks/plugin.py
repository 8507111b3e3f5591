"""Plugin registration of archon-tasks: rewards and data sets. Imports nothing of the extras."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.plugins import ConfigSection, DatasetSpec, RewardSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_rewards() -> Iterable[RewardSpec]:
    return [
        RewardSpec(
            name="math_verify",
            target="archon_tasks.mathematics:math_reward",
            summary="1 when math-verify finds completion and answer equal as mathematics, else 0",
        ),
        RewardSpec(
            name="reasoning_gym",
            target="archon_tasks.reasoning.reward:reasoning_reward",
            summary="the score of the reasoning-gym task that a record comes from",
        ),
    ]


@hookimpl
def archon_datasets() -> Iterable[DatasetSpec]:
    return [
        DatasetSpec(
            name="reasoning_gym",
            target="archon_tasks.reasoning.dataset:reasoning_dataset",
            summary="generated problems of reasoning-gym's tasks (data.reasoning_gym)",
            config=(ConfigSection("data.reasoning_gym", "archon_tasks.config:ReasoningGymOptions"),),
            unused=("path", "validation_path"),
            preferences=False,
        ),
    ]
