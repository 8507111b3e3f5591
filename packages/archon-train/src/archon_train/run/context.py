"""A trainer's view of its run: configuration, run folder, reports of progress, and requests to stop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from archon_core.ranks.ranks import Ranks
from archon_core.ranks.role_ranks import ACTOR
from archon_train.run.recordings import Recordings
from archon_train.run.starts import record_total_steps

if TYPE_CHECKING:
    from archon_core.contracts.decisions import Decision
    from archon_core.ranks.role_link import RoleLink
    from archon_train.run.folder import RunFolder
    from archon_train.run.interrupt import StopSignal
    from archon_train.run.metrics import MetricsLog
    from archon_train.run.progress import Progress


@dataclass(frozen=True)
class RunContext:
    """One run of a trainer.

    Attributes:
        config: the merged configuration (``ExperimentConfig`` with the sections of plugins).
        folder: the run folder.
        metrics: one row per step, to ``metrics.jsonl`` and TensorBoard.
        progress: what the user watches.
        stop: set by Ctrl-C; a trainer checks it between steps.
        decisions: recorded so far; the engines add theirs.
        explicit: dotted names of the options that the user wrote, as against defaults.
        ranks: all processes of the run. On others than the first, ``metrics`` and ``progress`` show and write nothing.
        recordings: takes the ``recordings`` of every ``StepStats``.
        role: whose ranks these are: ``actor``, or a role on its own ranks, which only answers requests.
        links: on the actor's ranks, role -> link to the ranks of its model, for every role on other ranks; on these,
            ``actor`` -> link to the actor's ranks.
    """

    config: Any
    folder: RunFolder
    metrics: MetricsLog
    progress: Progress
    stop: StopSignal
    decisions: list[Decision]
    explicit: frozenset[str] = frozenset()
    ranks: Ranks = field(default_factory=Ranks)
    recordings: Recordings = field(default_factory=Recordings)
    role: str = ACTOR
    links: Mapping[str, RoleLink] = field(default_factory=dict)

    def start_steps(self, total: int, *, completed: int) -> None:
        """Show the progress of the training steps. Writes how many there are and the decisions into the run folder, for
        ``archon watch`` and ``archon report`` while the run goes on.

        Args:
            total: steps of the whole run.
            completed: steps that are done, by an earlier start.
        """
        if self.ranks.is_first:
            record_total_steps(self.folder.path, total)
            self.folder.write_decisions(self.decisions)
        self.progress.start(total, completed=completed)

    def record(self, decisions: Iterable[Decision]) -> None:
        """Add new decisions to the run and show them; known ones are skipped."""
        for decision in decisions:
            if decision not in self.decisions:
                self.decisions.append(decision)
                self.progress.note(
                    f"Decision: {decision.option}: {decision.requested} -> {decision.effective} ({decision.reason})"
                )
