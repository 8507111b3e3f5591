"""Plugin registration of archon-tasks: rewards, data sets and environments. Imports nothing of the extras."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.plugins import ConfigSection, DatasetSpec, EnvironmentSpec, RewardSpec, hookimpl

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
        DatasetSpec(
            name="verifiers",
            target="archon_tasks.environments.verifiers_dataset:verifiers_dataset",
            summary="the rows of an environment of verifiers (data.verifiers)",
            config=(ConfigSection("data.verifiers", "archon_tasks.config:VerifiersOptions"),),
            unused=("path", "validation_path"),
            preferences=False,
        ),
    ]


@hookimpl
def archon_environments() -> Iterable[EnvironmentSpec]:
    return [
        EnvironmentSpec(
            name="reasoning_gym",
            target="archon_tasks.reasoning.environment:reasoning_environment",
            summary="a problem of reasoning-gym, with further tries after a wrong answer",
        ),
        EnvironmentSpec(
            name="verifiers",
            target="archon_tasks.environments.verifiers_adapter:verifiers_environment",
            summary="an environment of verifiers, with its rewards",
        ),
        EnvironmentSpec(
            name="openenv",
            target="archon_tasks.environments.openenv_adapter:openenv_environment",
            summary="a running server of OpenEnv",
        ),
    ]
