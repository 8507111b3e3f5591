"""Records the decisions of a trainer and its engines with the run, and shows them."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.contracts.decisions import Decision
from archon_train.run.context import RunContext


def record_decisions(run: RunContext, decisions: Iterable[Decision]) -> None:
    """Add new decisions to the run and show them; known ones are skipped."""
    for decision in decisions:
        if decision not in run.decisions:
            run.decisions.append(decision)
            run.progress.note(
                f"Decision: {decision.option}: {decision.requested} -> {decision.effective} ({decision.reason})"
            )
