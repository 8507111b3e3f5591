"""Findings of ``archon doctor``, and how they are printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from rich.text import Text

from archon_core.cli.console import print_text, wrap_hanging

State = Literal["ok", "note", "failure"]

STATE_WIDTH = 8

STYLES: Mapping[State, str] = {"ok": "green", "note": "yellow", "failure": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: the component.
        state: ``note`` for information; ``failure`` for something that does not work.
        found: the finding.
        advice: the fix; empty if none is needed.
    """

    subject: str
    state: State
    found: str
    advice: str = ""


def print_findings(findings: Iterable[Finding]) -> None:
    """Print each finding, and its advice below it."""
    for finding in findings:
        subject = f"{finding.subject:<14} "
        indent = STATE_WIDTH + len(subject)
        print_text(
            Text.assemble(
                (f"{finding.state:<{STATE_WIDTH}}", STYLES[finding.state]),
                (subject, "bold"),
                wrap_hanging(finding.found, indent=indent, first=" " * indent)[indent:],
                # Not wrapped: users copy commands from it.
                f"\n{'':{STATE_WIDTH}}{finding.advice}" if finding.advice else "",
            )
        )
