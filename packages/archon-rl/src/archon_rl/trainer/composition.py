"""Builds a run's algorithm from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from archon_core.contracts.decisions import Decision
from archon_train.run.context import RunContext

A = TypeVar("A")


def composed(run: RunContext, factory: Callable[[Any, list[Decision]], A]) -> A:
    """The algorithm that ``factory`` builds for the run, which records the decisions.

    Raises:
        ConfigError: from ``factory``.
    """
    decisions: list[Decision] = []
    algorithm = factory(run.config, decisions)
    run.record(decisions)
    return algorithm
