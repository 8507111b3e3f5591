"""Recorded decisions: every setting that Archon changes, with the reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """One change, as a row of the decisions table.

    Attributes:
        option: dotted name of the option, such as ``actor.archon.enable_compile``.
        requested: what the configuration says, as text.
        effective: what the run uses, as text.
        reason: why, as a sentence without a full stop.
    """

    option: str
    requested: str
    effective: str
    reason: str
