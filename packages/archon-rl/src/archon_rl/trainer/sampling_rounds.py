"""Synchronous sampling with a workflow of many requests, on an engine whose ``generate`` is collective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from archon_core.contracts.rollout import InferenceEngine
from archon_core.contracts.serving import RolloutClient
from archon_core.ranks.ranks import DataRanks
from archon_rl.algorithm import Algorithm
from archon_rl.collector.group import Group
from archon_rl.collector.sampling import GroupSampler
from archon_rl.collector.window import Settled
from archon_rl.trainer.collecting import Collected, refill_statistics, without_rewards
from archon_rl.trainer.failures import FailureJudge
from archon_rl.trainer.settled_groups import FACTS, batch_of, judge_groups, mean_facts, sampled_by
from archon_rl.trainer.sharing import map_over_ranks
from archon_rl.trainer.step_metrics import PhaseClock
from archon_rl.trainer.task import Task
from archon_rl.workflows.lockstep import run_in_lockstep


@dataclass(frozen=True)
class WorkflowRounds:
    """Runs a workflow for records, which the data ranks divide among them.

    Attributes:
        sampler: runs it for a record; its client is replaced.
        engine: answers requests, in rounds.
        data_ranks: of the engine.
    """

    sampler: GroupSampler
    engine: InferenceEngine
    data_ranks: DataRanks

    def __call__(self, records: Sequence[Mapping[str, Any]], first: int = 0) -> dict[int, Settled[Group]]:
        """Number -> group of each record, on every rank; ``first`` is the number of the first. Collective."""

        async def sample(place: int, client: RolloutClient) -> Settled[Group]:
            return await replace(self.sampler, client=client).sample(first + place, records[place])

        def run(places: list[int]) -> Sequence[Settled[Group]]:
            works = [partial(sample, place) for place in places]
            return run_in_lockstep(works, self.engine, self.data_ranks, self.sampler.encoder.decode_literally)

        return dict(enumerate(map_over_ranks(len(records), run, self.data_ranks), first))


@dataclass(frozen=True)
class SampleRounds:
    """A ``Collection`` that runs a workflow when a step asks for its completions.

    Attributes:
        task: records and tokenizer.
        algorithm: shapes rewards, and selects groups.
        run_workflow: runs the workflow.
        judge: explains failures.
        has_rewards: whether the run has a reward function; workflows may give rewards without one.
        needs_experts: require the routed experts of every completion (``rollout.return_routed_experts``).
    """

    task: Task
    algorithm: Algorithm
    run_workflow: WorkflowRounds
    judge: FailureJudge
    has_rewards: bool
    needs_experts: bool = False

    def published(self, step: int) -> None:
        """See ``Collection``; the next step samples with these weights."""

    def state(self) -> bytes | None:
        """See ``Collection``; the position in the data is all that matters between steps."""
        return None

    def restore(self, state: bytes | None) -> None:
        """See ``Collection``. The groups that a collector had finished are sampled again."""

    def __call__(self, step: int, clock: PhaseClock) -> Collected:
        """The completions of ``step``; records whose workflow or reward failed are left out."""
        cursor, settled, n_rounds, n_kept = self.task.cursor, dict[int, Settled[Group]](), 0, 0
        first = cursor.first(step)
        with clock("rollout"):
            while n_kept < cursor.batch_size and n_rounds < self.algorithm.max_rounds:
                missing = cursor.batch_size - n_kept
                records = self.task.more_records(step, missing) if n_rounds else self.task.records(step)
                settled |= self.run_workflow(records, first + len(settled))
                n_kept, n_rounds = sum(one.accepted for one in settled.values()), n_rounds + 1
        groups = settled.values()
        failures = judge_groups(self.judge, groups, f"Step {step + 1}", has_rewards=self.has_rewards)
        chosen = [one.group for one in groups if one.accepted]
        batch = batch_of(self.algorithm, chosen, needs_experts=self.needs_experts)
        statistics = sampled_by(groups).statistics(len(batch))
        if not self.has_rewards and not self.algorithm.needs_rewards:
            statistics = without_rewards(statistics)
        if self.algorithm.selection is not None:
            statistics |= refill_statistics(len(settled), n_kept, cursor.batch_size, n_rounds)
        facts = {f"{FACTS}{name}": value for name, value in mean_facts(groups).items()}
        return Collected(batch, statistics | failures | facts, settled)
