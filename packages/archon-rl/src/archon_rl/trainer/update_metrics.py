"""Aggregates the metrics of a step's optimizer updates."""

from __future__ import annotations

from collections.abc import Sequence

from archon_core.contracts.engine import StepStats


def average(updates: Sequence[StepStats]) -> dict[str, float]:
    """Means over the updates, their number, the number of skipped ones, and the last learning rate."""
    metrics: dict[str, float] = {
        "updates": len(updates),
        "skipped_updates": sum(stats.skipped for stats in updates),
    }
    if updates:
        metrics["loss"] = sum(stats.loss for stats in updates) / len(updates)
        metrics["gradient_norm"] = sum(stats.gradient_norm or 0.0 for stats in updates) / len(updates)
        metrics["learning_rate"] = updates[-1].learning_rate or 0.0
        for name in updates[0].metrics:
            metrics[name] = sum(stats.metrics[name] for stats in updates) / len(updates)
    return metrics
