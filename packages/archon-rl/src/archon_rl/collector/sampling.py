"""Samples one group: the record of its number, its workflow's trajectories, and the algorithm's choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from archon_core.contracts.data import Dataset
from archon_core.contracts.serving import RolloutClient
from archon_core.contracts.workflows import Workflow
from archon_rl.algorithm import Algorithm
from archon_rl.collector.group import Group
from archon_rl.collector.window import Settled
from archon_rl.datasets.cursor import DataCursor
from archon_rl.datasets.placed_record import read_placed
from archon_rl.text_encoding import TextEncoder
from archon_rl.trainer.rollout_batch import build_batch
from archon_rl.workflows.context_limit import UNLIMITED, ContextLimit
from archon_rl.workflows.running import GroupClient, run_workflow

NOT_SELECTED = "the algorithm did not select it"
NO_REWARD = "a completion has no reward"
WORKFLOW_FAILED = "the workflow failed"
LEFT_OUT = "the workflow left it out"

DROPPED = {
    NOT_SELECTED: "dropped/not_selected",
    NO_REWARD: "dropped/no_reward",
    WORKFLOW_FAILED: "dropped/workflow_failed",
    LEFT_OUT: "dropped/left_out",
}
"""Reason -> metric: groups of a step that it does not train on."""


def dropped_counts(settled: Iterable[Settled[Group]]) -> dict[str, float]:
    """The metrics of ``DROPPED``."""
    reasons = Counter(one.reason for one in settled)
    return {metric: float(reasons[reason]) for reason, metric in DROPPED.items()}


@dataclass(frozen=True)
class GroupSampler:
    """Samples groups with a workflow.

    Attributes:
        workflow: turns a record into trajectories.
        name: of the workflow, for messages.
        encoder: finds stop texts.
        client: completes prompts; ``None`` for a sampler that gets one per record.
        n_samples: samples per record.
        seed_of: (number of the record, number of the sample) -> seed.
        algorithm: selects groups; ``None`` to keep all.
        context: the longest sequence of the run.
        checks_tokens: check every token of the workflow's trajectories.
        traces: log every request.
        keeps_rejected: keep the trajectories of groups that the algorithm does not select, for files.
        prefix: before the number of a record, the name of its group for servers and logs.
    """

    workflow: Workflow
    name: str
    encoder: TextEncoder
    client: RolloutClient | None
    n_samples: int
    seed_of: Callable[[int, int], int]
    algorithm: Algorithm | None
    context: ContextLimit = UNLIMITED
    checks_tokens: bool = False
    traces: bool = False
    keeps_rejected: bool = False
    prefix: str = ""

    async def sample(self, number: int, record: Mapping[str, Any]) -> Settled[Group]:
        """The group of a record.

        Args:
            number: of the record: for training, counted over all records that the run draws.

        Raises:
            ArchonError: see ``run_workflow``.
        """
        assert self.client is not None, "a sampler needs a client"
        seeds = [self.seed_of(number, sample) for sample in range(self.n_samples)]
        client = GroupClient(self.client, self.encoder, f"{self.prefix}{number}", self.context, self.traces)
        result = await run_workflow(self.name, self.workflow, client, record, seeds, checks_tokens=self.checks_tokens)
        seconds = {"rollout": result.seconds, "reward": result.tally.seconds}
        if result.trajectories:
            return self._selected(Group.of(result.trajectories, seconds, result.tally.calls))
        failures, reason = result.failures, NO_REWARD if result.failures else LEFT_OUT
        if result.error is not None:
            failures, reason = (result.error,), WORKFLOW_FAILED
        return Settled(Group.without(failures, seconds, result.tally.calls), reason)

    def _selected(self, group: Group) -> Settled[Group]:
        if self.algorithm is None or self.algorithm.selection is None:
            return Settled(group)
        raw, lengths = torch.tensor(group.rewards, dtype=torch.float32), torch.tensor(group.lengths)
        batch = build_batch({0: group.trajectories}, self.algorithm.rewards(raw, lengths))
        if self.algorithm.selection(batch).all():
            return Settled(group)
        return Settled(group if self.keeps_rejected else group.without_trajectories(), NOT_SELECTED)


@dataclass(frozen=True)
class HeldOutSampler:
    """Samples the groups of held-out records by their places in the data set, for evaluations.

    Attributes:
        dataset: held-out records.
        groups: samples the group of a record, with the seeds and options of evaluations and without a selection.
    """

    dataset: Dataset
    groups: GroupSampler

    async def __call__(self, place: int) -> Settled[Group]:
        """The group of the record at ``place``, without its trajectories: metrics need none of their tokens."""
        settled = await self.groups.sample(place, read_placed(self.dataset, place))
        return replace(settled, group=settled.group.without_trajectories())


@dataclass(frozen=True)
class RunSampler:
    """Samples the groups of a run by their numbers.

    Attributes:
        dataset: training records.
        cursor: their order.
        groups: samples the group of a record.
        held_out: samples held-out records; ``None`` for a run whose evaluations need no collector.
    """

    dataset: Dataset
    cursor: DataCursor
    groups: GroupSampler
    held_out: HeldOutSampler | None = None

    async def __call__(self, number: int) -> Settled[Group]:
        """The group of record ``number``, counted over all records that the run draws."""
        return await self.groups.sample(number, read_placed(self.dataset, self.cursor.index(number)))
