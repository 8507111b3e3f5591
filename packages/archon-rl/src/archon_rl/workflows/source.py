"""``WorkflowSource``: what the option ``workflow`` names, and the workflow that it builds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archon_core.contracts.workflows import WORKFLOW_PARAMETERS, Workflow, WorkflowParts, WorkflowSpec
from archon_core.errors import ConfigError
from archon_core.plugins import Registry
from archon_core.plugins.workflow_choice import choose_workflow
from archon_rl.chosen_function import ChosenFunction


@dataclass(frozen=True)
class WorkflowSource(ChosenFunction):
    """A workflow's factory that is not imported yet."""

    option = "workflow"
    parameters = WORKFLOW_PARAMETERS

    @property
    def is_rlvr(self) -> bool:
        """Whether each completion of a prompt is a trajectory, so that a step can sample all of them at once."""
        return self.target == "archon_rl.workflows.rlvr:rlvr"

    def build(self, config: Any, parts: WorkflowParts) -> Workflow:
        """The workflow of a run.

        Raises:
            ConfigError: as ``load``; or the factory returned something else.
            ArchonError: from the factory.
        """
        workflow = self.load()(config, parts)
        if not callable(getattr(workflow, "run", None)):
            raise ConfigError(
                f"{self}: found a value of type {type(workflow).__name__}, which {self.target} returned; allowed is an "
                "object with the method 'async def run(self, client, record, seeds)'; correct the function"
            )
        return workflow


def workflow_source(name: str, registry: Registry) -> WorkflowSource:
    """The source of the workflow that the configuration names; see ``choose`` for errors."""
    chosen = choose_workflow(name, registry)
    if isinstance(chosen, WorkflowSpec):
        return WorkflowSource(chosen.name, chosen.target, chosen.origin)
    return WorkflowSource(name, chosen.target, folder=str(chosen.folder))
