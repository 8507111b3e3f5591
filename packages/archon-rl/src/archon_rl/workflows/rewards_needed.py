"""Whether a run needs a reward function, for its steps and for its evaluations. Imports no torch."""

from __future__ import annotations

from typing import Any

from archon_core.contracts.workflows import WorkflowSpec
from archon_core.plugins import registry
from archon_rl.agents.checks import uses_agents, workflow_name


def gives_rewards(config: Any) -> bool:
    """Whether the run's workflow gives rewards itself. A workflow of the user's own may do so."""
    name = workflow_name(config)
    spec = next((one for one in registry().all(WorkflowSpec) if name in (one.name, *one.aliases)), None)
    return spec is None or spec.gives_rewards


def evaluates_rewards(config: Any) -> bool:
    """Whether evaluations have rewards, from the reward function or from the workflow.

    Sessions of agents need the collector, which samples training records alone.
    """
    return config.reward is not None or (gives_rewards(config) and not uses_agents(config))
