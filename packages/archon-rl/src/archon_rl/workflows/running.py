"""Runs a workflow for one record: its trajectories, or why there are none."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from archon_core.contracts.rollout import Completion, GenerationRequest
from archon_core.contracts.serving import RolloutClient
from archon_core.contracts.workflows import Trajectory, Workflow
from archon_core.errors import ConfigError, RefusedRequestError, ServerError, TrainingError
from archon_rl.rewards.calls import Outcome, failure_by
from archon_rl.rewards.checking import described
from archon_rl.text_encoding import TextEncoder
from archon_rl.workflows.checking import checked_trajectories
from archon_rl.workflows.rewards import RewardsFailedError, RewardTally, tallied

ENDS_THE_RUN = (ConfigError, ServerError, TrainingError)
"""Errors of a workflow that concern more than its record; a refused request concerns the record alone."""


@dataclass
class GroupClient:
    """The client that a workflow gets for one record.

    Attributes:
        client: completes prompts.
        encoder: finds stop texts.
        group: the group of requests that name none.
        n_sampled: number of sampled tokens so far.
    """

    client: RolloutClient
    encoder: TextEncoder
    group: str
    n_sampled: int = 0

    @property
    def version(self) -> int:
        """See ``RolloutClient``."""
        return self.client.version

    async def generate(self, request: GenerationRequest, *, group: str = "") -> list[Completion]:
        """See ``RolloutClient``."""
        if request.decode is None:
            request = replace(request, decode=self.encoder.decode_literally)
        completions = await self.client.generate(request, group=group or self.group)
        self.n_sampled += sum(len(one.token_ids) for one in completions)
        return completions


@dataclass(frozen=True)
class WorkflowResult:
    """What a workflow made of a record.

    Attributes:
        trajectories: none if the workflow left the record out or failed.
        failures: completions without a reward.
        error: an exception of the workflow; ``None`` without one.
        tally: its reward calls.
        seconds: duration, without the time of rewards.
    """

    trajectories: tuple[Trajectory, ...]
    failures: tuple[Outcome, ...]
    error: Outcome | None
    tally: RewardTally
    seconds: float


async def run_workflow(
    name: str, workflow: Workflow, client: GroupClient, record: Mapping[str, Any], seeds: Sequence[int]
) -> WorkflowResult:
    """Run a workflow for one record. Its exceptions become a result, except ``ENDS_THE_RUN``.

    Args:
        name: of the workflow, for messages.

    Raises:
        ConfigError, ServerError, TrainingError: that the workflow raised; or it returned something invalid.
    """
    trajectories, failures, error, start = (), (), None, time.perf_counter()
    with tallied() as tally:
        try:
            found = await workflow.run(client, record, seeds)
            trajectories = checked_trajectories(name, found, client.n_sampled) or ()
        except RewardsFailedError as failed:
            failures = failed.failures
        except (Exception, SystemExit) as raised:
            if isinstance(raised, ENDS_THE_RUN) and not isinstance(raised, RefusedRequestError):
                raise
            place = getattr(record, "place", "a record without a location")
            text = f"{place}: workflow {name!r} raised {described(raised)}; correct the workflow"
            error = failure_by(raised, text)
    seconds = max(0.0, time.perf_counter() - start - tally.seconds)
    return WorkflowResult(trajectories, failures, error, tally, seconds)
