"""Runs a workflow for one record: its trajectories, or why there are none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from archon_core.contracts.rollout import Completion, GenerationRequest
from archon_core.contracts.serving import RolloutClient
from archon_core.contracts.workflows import Trajectory, Workflow
from archon_core.errors import ConfigError, DataError, RefusedRequestError, ServerError, TrainingError
from archon_rl.cancellation import is_cancellation
from archon_rl.rewards.calls import Outcome, failure_by
from archon_rl.rewards.checking import described
from archon_rl.text_encoding import TextEncoder
from archon_rl.workflows.checking import checked_trajectories
from archon_rl.workflows.context_limit import UNLIMITED, ContextLimit
from archon_rl.workflows.rewards import RewardsFailedError, RewardTally, tallied
from archon_rl.workflows.token_checks import check_tokens
from archon_rl.workflows.tracing import trace_failure, trace_request

ENDS_THE_RUN = (ConfigError, ServerError, TrainingError)
"""Errors of a workflow that concern more than its record; a refused request concerns the record alone."""


@dataclass
class GroupClient:
    """The client that a workflow gets for one record.

    Attributes:
        client: completes prompts.
        encoder: finds stop texts.
        group: the group of requests that name none.
        context: limits prompts and completions.
        traces: log every request.
        n_sampled: number of sampled tokens so far.
    """

    # An invalid request must fail here, on one rank: in the collective call of an engine, the others would wait.

    client: RolloutClient
    encoder: TextEncoder
    group: str
    context: ContextLimit = UNLIMITED
    traces: bool = False
    n_sampled: int = 0
    _beyond_tokenizer: set[int] = field(default_factory=set, init=False)

    @property
    def version(self) -> int:
        """See ``RolloutClient``."""
        return self.client.version

    async def generate(self, request: GenerationRequest, *, group: str = "") -> list[Completion]:
        """See ``RolloutClient``."""
        self._check(request)
        request = self.context.applied(request)
        if request.decode is None:
            request = replace(request, decode=self.encoder.decode_literally)
        completions = await self._answer(request, group or self.group)
        for one in completions:
            self.n_sampled += len(one.token_ids)
            # A model may have more ids than its tokenizer.
            self._beyond_tokenizer.update(token for token in one.token_ids if token >= len(self.encoder.tokenizer))
        return completions

    async def _answer(self, request: GenerationRequest, group: str) -> list[Completion]:
        if not self.traces:
            return await self.client.generate(request, group=group)
        n_prompt, start = len(request.prompt_ids), time.perf_counter()
        try:
            completions = await self.client.generate(request, group=group)
        except BaseException as error:
            trace_failure(group, n_prompt, error, time.perf_counter() - start)
            raise
        trace_request(group, n_prompt, completions, time.perf_counter() - start)
        return completions

    def _check(self, request: GenerationRequest) -> None:
        """Raise DataError for ids that the model may not have, and for seeds that are not one per sample."""
        size, n_samples = len(self.encoder.tokenizer), request.config.n_samples
        outside = [
            token for token in request.prompt_ids if not 0 <= token < size and token not in self._beyond_tokenizer
        ]
        if outside or not request.prompt_ids:
            found = f"the token id {outside[0]}" if outside else "no tokens"
            raise DataError(
                f"prompt of a request: found {found}; allowed are the ids of the tokenizer, 0 to {size - 1}, and ids "
                "that were sampled for the record"
            )
        if len(request.seeds) != n_samples:
            raise DataError(
                f"seeds of a request: found {len(request.seeds)} for n_samples={n_samples}; give one per sample"
            )


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
    name: str,
    workflow: Workflow,
    client: GroupClient,
    record: Mapping[str, Any],
    seeds: Sequence[int],
    *,
    checks_tokens: bool = False,
) -> WorkflowResult:
    """Run a workflow for one record. Its exceptions become a result, except ``ENDS_THE_RUN``.

    A ``CancelledError`` is one of them, unless the task that calls this is cancelled.

    Args:
        name: of the workflow, for messages.
        checks_tokens: check every token of its trajectories.

    Raises:
        ConfigError, ServerError, TrainingError: that the workflow raised; or it returned something invalid.
    """
    trajectories, failures, error, start = (), (), None, time.perf_counter()
    with tallied() as tally:
        try:
            found = await workflow.run(client, record, seeds)
            trajectories = checked_trajectories(name, found, client.n_sampled) or ()
            for one in trajectories if checks_tokens else ():
                check_tokens(name, one)
        except RewardsFailedError as failed:
            failures = failed.failures
        except (Exception, SystemExit, asyncio.CancelledError) as raised:
            ends_the_run = isinstance(raised, ENDS_THE_RUN) and not isinstance(raised, RefusedRequestError)
            if ends_the_run or is_cancellation(raised):
                raise
            place = getattr(record, "place", "a record without a location")
            text = f"{place}: workflow {name!r} raised {described(raised)}; correct the workflow"
            error = failure_by(raised, text)
    seconds = max(0.0, time.perf_counter() - start - tally.seconds)
    return WorkflowResult(trajectories, failures, error, tally, seconds)
