"""Whether a run needs a reward function, for its steps and for its evaluations. Imports no torch."""

from __future__ import annotations

from typing import Any

from archon_core.contracts.workflows import WorkflowSpec
from archon_core.plugins import registry
from archon_rl.agents.checks import runs_agents, uses_agents, workflow_name


def gives_rewards(config: Any) -> bool:
    """Whether the run's workflow gives rewards itself. A workflow of the user's own may do so."""
    name = workflow_name(config)
    spec = next((one for one in registry().all(WorkflowSpec) if name in (one.name, *one.aliases)), None)
    return spec is None or spec.gives_rewards


def uses_reward(config: Any) -> bool:
    """Whether the run calls the reward that ``reward`` names. The run's own agents give all rewards; with agents from
    outside, evaluations call it."""
    return config.reward is not None and not runs_agents(config)


def evaluates_rewards(config: Any) -> bool:
    """Whether evaluations have rewards, from the reward function, the workflow or the run's agents.

    Agents from outside start sessions of training records alone.
    """
    from_workflow = gives_rewards(config) and (runs_agents(config) or not uses_agents(config))
    return from_workflow or config.reward is not None
