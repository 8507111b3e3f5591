"""Asynchronous sampling: a collector samples the groups of later steps while this one trains.

The collector's process is the first rank's; its batches are broadcast, so every rank has the whole batch, as in
synchronous training. A collector that dies is replaced: the groups that no step has consumed are sampled again, with
the same seeds, and so are those of an evaluation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgpack

from archon_core.contracts.rollout import GenerationConfig
from archon_core.contracts.serving import ServingEngine
from archon_core.errors import TrainingError
from archon_core.ranks.failing_together import failing_together
from archon_core.ranks.ranks import Ranks
from archon_rl.algorithm import Algorithm
from archon_rl.collector.batches import BatchRule, Pace
from archon_rl.collector.group import Group
from archon_rl.collector.messages import unpacked
from archon_rl.collector.staleness import GroupAges, ages_of, staleness_metrics
from archon_rl.collector.states import batch_data, read_batch, read_settled, settled_data, state_data
from archon_rl.collector.window import ConsumedBatch, Settled, WindowState
from archon_rl.fingerprint import Fingerprint
from archon_rl.trainer.collecting import Collected, StoppedWaitingError, refill_statistics, without_rewards
from archon_rl.trainer.collector_link import CollectorLink, CollectorLostError
from archon_rl.trainer.failures import FailureJudge
from archon_rl.trainer.scoring import Scorer
from archon_rl.trainer.settled_groups import FACTS, batch_of, judge_groups, mean_facts, mean_seconds, sampled_by
from archon_rl.trainer.step_metrics import PhaseClock
from archon_rl.trainer.task import Task
from archon_rl.trajectory_files import STALE
from archon_rl.workflows.context_limit import ContextLimit
from archon_train.run.context import RunContext

POLL_SECONDS = 0.5
"""Between looks at the servers while a batch is incomplete."""

MAX_LOSSES = 3
"""Collectors that may be lost in a row without a batch or an evaluation between them."""

T = TypeVar("T")


@dataclass(frozen=True)
class HeldOutSampling:
    """How a collector samples held-out records.

    Attributes:
        options: sampling options of evaluations, with all stop tokens.
        context: the longest sequence that evaluations can generate.
    """

    options: GenerationConfig
    context: ContextLimit


@dataclass
class SampleAhead:
    """A ``Collection`` whose completions a collector samples.

    Attributes:
        run: the run.
        task: records and tokenizer.
        algorithm: shapes rewards, and selects groups.
        rollout: has the servers.
        scorer: of the run; ``None`` for an algorithm that needs no rewards.
        judge: explains failures.
        options: sampling options, with all stop tokens.
        context: the longest sequence of the run.
        pace: how far the collector may run ahead.
        reward: the source that scores completions; a collector that starts later must import the same.
        code: of the user's own functions of the workflow, by option; likewise.
        n_data_ranks: number of data ranks of the trainer; the collector has the reward processes of all.
        held_out: how to sample held-out records; ``None`` for a run whose evaluations need no collector. Set before the
            first ``published``.
    """

    run: RunContext
    task: Task
    algorithm: Algorithm
    rollout: ServingEngine
    scorer: Scorer | None
    judge: FailureJudge
    options: GenerationConfig
    context: ContextLimit
    pace: Pace
    reward: Fingerprint | None
    code: Mapping[str, Fingerprint]
    n_data_ranks: int
    held_out: HeldOutSampling | None = None
    _link: CollectorLink | None = field(default=None, init=False)
    _published: tuple[int, int] = field(default=(0, 0), init=False)
    _steps: dict[int, int] = field(default_factory=dict, init=False)
    _restored: dict[str, Any] | None = field(default=None, init=False)
    _lost: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.rollout.on_switch(self._switching)

    @property
    def _ranks(self) -> Ranks:
        return self.run.ranks

    def published(self, step: int) -> None:
        """See ``Collection``. The first call starts the collector."""
        version = self.rollout.version
        self._published = step, version
        # Weights that a step leaves unchanged, such as a critic's warm-up, stay the newest ones.
        self._steps[version] = step
        with failing_together(self._ranks):
            if self._ranks.is_first:
                self._reach(self._publish)

    def state(self) -> bytes | None:
        """See ``Collection``: the finished groups, and the steps of the versions that sampled them."""
        window = self._reach(lambda link: link.state())
        return msgpack.packb({"window": window, "steps": self._steps, "max_staleness": self.pace.max_staleness})

    def restore(self, state: bytes | None) -> None:
        """See ``Collection``."""
        state = self._ranks.broadcast(state)
        if state is not None:
            found = unpacked(state)
            self._steps = found["steps"]
            if found["max_staleness"] <= self.pace.max_staleness:
                self._restored = found["window"]
            # Groups that were sampled further ahead than this run allows are sampled again.

    def __call__(self, step: int, clock: PhaseClock) -> Collected:
        """The completions of ``step``; groups with a completion without a reward are left out."""
        with clock("rollout"):
            data = self._wait(self._take)
            batch = read_batch(data)
            self.task.cursor.seek(step + 1, drawn=data["first"])
            return self._collected(batch, data["load"], data["servers"], step)

    def evaluate(self, n_records: int) -> Mapping[int, Settled[Group]]:
        """The groups of the first ``n_records`` held-out records by place, without their trajectories, sampled with the
        published weights. Collective.

        Raises:
            StoppedWaitingError: on all ranks; the groups are left to the collector, which ends with the run.
        """
        assert self.held_out is not None, "the collector has the held-out records"
        return read_settled(self._wait(partial(self._take_evaluation, n_records)))

    def close(self) -> None:
        """End the collector."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _switching(self) -> None:
        """The servers switch; on the first rank. The next ``published`` tells a collector that is lost meanwhile."""
        if self._link is not None:
            with contextlib.suppress(CollectorLostError):
                self._link.switching()

    def _wait(self, take: Callable[[CollectorLink], T | None]) -> T:
        """What the first rank takes from the collector once it is complete, on every rank. Raises StoppedWaitingError,
        as it may never be complete."""
        while True:
            data: T | None = None
            needs_publication = stops = False
            with failing_together(self._ranks):
                if self._ranks.is_first:
                    while data is None and not needs_publication and not stops:
                        data = self._reach(take)
                        needs_publication = data is None and self.rollout.needs_publication()
                        stops = data is None and self.run.stop.requested
            data, stops = self._ranks.broadcast((data, stops))
            if data is not None:
                return data
            if stops:
                raise StoppedWaitingError
            self.rollout.update_weights(self._published[1])  # waits for servers, which need the weights
            self.published(self._published[0])

    def _take(self, link: CollectorLink) -> dict[str, Any] | None:
        taken = link.take(POLL_SECONDS)
        self._update_servers(link)
        if taken is None:
            return None
        batch, load = taken
        self._lost = 0
        servers = {server.address: server.version for server in self.rollout.servers()}
        return batch_data(batch) | {"load": load, "servers": servers, "first": max(batch.settled) + 1}

    def _take_evaluation(self, n_records: int, link: CollectorLink) -> list[Any] | None:
        groups = link.evaluate(n_records, POLL_SECONDS)
        self._update_servers(link)
        if groups is None:
            return None
        self._lost = 0
        return settled_data(groups)

    def _update_servers(self, link: CollectorLink) -> None:
        failures = link.update_servers(self._published[1], self.rollout.servers(), self.rollout.answering())
        if failures:
            self.rollout.report_failures(failures)

    def _reach(self, call: Any) -> Any:
        """Call the collector; start another one if it is lost."""
        while True:
            try:
                if self._link is None:
                    self._link = self._start()
                return call(self._link)
            except CollectorLostError as error:
                self.close()
                self._lost += 1
                if self._lost > MAX_LOSSES:
                    raise TrainingError(
                        f"the collector was lost {self._lost} times without completing a batch or an evaluation: "
                        f"{error}; its log is {self._log}"
                    ) from error
                self.run.progress.note(f"The collector was lost ({error}); sampling its unfinished groups again")

    def _start(self) -> CollectorLink:
        link = CollectorLink(self._setup(self._published[0]), self._log)
        try:
            self._publish(link)
        except BaseException:
            link.close()
            raise
        self._restored = None
        return link

    def _publish(self, link: CollectorLink) -> None:
        step, version = self._published
        link.publish(step, version, self.rollout.servers(), self.rollout.answering())

    @property
    def _log(self) -> Path:
        return self.run.folder.path / "collector.log"

    def _setup(self, step: int) -> dict[str, Any]:
        # Of a lost collector, only the place in the data is known: its groups are sampled again.
        state = self._restored or state_data(WindowState(step, self.task.cursor.first(step)))
        return {
            "folder": str(self.run.folder.path),
            "kept": None if self.task.kept is None else list(self.task.kept),
            "rule": {"batch_size": self.task.cursor.batch_size, "max_rounds": self.algorithm.max_rounds},
            "pace": asdict(self.pace),
            "state": state,
            "client": asdict(self.rollout.client_recipe()),
            "options": asdict(self.options),
            "context": asdict(self.context),
            "reward": None if self.reward is None else asdict(self.reward),
            "code": {option: asdict(found) for option, found in self.code.items()},
            "data_ranks": self.n_data_ranks,
            "held_out": self._held_out_setup(),
        }

    def _held_out_setup(self) -> dict[str, Any] | None:
        if self.held_out is None:
            return None
        kept = self.task.kept_held_out
        return {
            "kept": None if kept is None else list(kept),
            "options": asdict(self.held_out.options),
            "context": asdict(self.held_out.context),
        }

    def _collected(
        self, batch: ConsumedBatch[Group], load: Mapping[str, float], servers: Mapping[str, int], step: int
    ) -> Collected:
        failures = judge_groups(
            self.judge, batch.settled.values(), f"Step {step + 1}", has_rewards=self.scorer is not None
        )
        kept, ages, stale = list[Group](), list[GroupAges](), dict[int, GroupAges]()
        for number, group in batch.groups.items():
            found = ages_of(group, self._steps, step)
            if found.oldest <= self.pace.max_staleness:
                kept.append(group)
                ages.append(found)
            else:
                stale[number] = found
        chosen = batch_of(self.algorithm, kept, needs_experts=self.run.config.rollout.return_routed_experts)
        statistics = sampled_by(batch.settled.values()).statistics(len(chosen))
        if self.scorer is None and not self.algorithm.needs_rewards:
            statistics = without_rewards(statistics)
        if self.algorithm.selection is not None:
            rule = BatchRule(self.task.cursor.batch_size, self.algorithm.max_rounds)
            n_rounds = rule.n_rounds([one.accepted for one in batch.settled.values()])
            statistics |= refill_statistics(len(batch.settled), len(batch.groups), rule.batch_size, n_rounds)
        return Collected(
            chosen,
            {
                **statistics,
                **failures,
                **{f"{FACTS}{name}": value for name, value in mean_facts(batch.settled.values()).items()},
                **staleness_metrics(ages, [*stale.values()], bound=self.pace.max_staleness),
                **mean_seconds(batch.settled.values()),
                **{f"server_version/{address}": version for address, version in servers.items()},
                **{f"collector/{name}": value for name, value in load.items()},
            },
            {number: replace(one, reason=STALE) if number in stale else one for number, one in batch.settled.items()},
        )
