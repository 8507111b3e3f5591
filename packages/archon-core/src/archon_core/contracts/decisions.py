"""Recorded decisions: every change that Archon makes to a configuration, with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """One change, as a row of the decisions table.

    Attributes:
        option: dotted name of the option, such as ``actor.archon.enable_compile``.
        requested: the configured value, as text.
        effective: the value that the run uses, as text.
        reason: why, as a sentence without a full stop.
    """

    option: str
    requested: str
    effective: str
    reason: str
