"""Decisions of a trainer and its engines: recorded with the run and shown as they are taken."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.contracts.decisions import Decision
from archon_train.run.context import RunContext


def record_decisions(run: RunContext, decisions: Iterable[Decision]) -> None:
    """Add to the run's decisions those that are not among them yet, and show them."""
    for decision in decisions:
        if decision not in run.decisions:
            run.decisions.append(decision)
            run.progress.note(
                f"Decision: {decision.option}: {decision.requested} -> {decision.effective} ({decision.reason})"
            )
