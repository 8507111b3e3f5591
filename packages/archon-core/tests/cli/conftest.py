"""Runs ``archon`` in this process with the fake plugins beside the installed ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from archon_core.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """What a command left.

    Attributes:
        code: exit code.
        out: standard output.
        err: standard error.
    """

    code: int
    out: str
    err: str


@pytest.fixture
def archon(site: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the program with these arguments."""
    monkeypatch.setenv("COLUMNS", "200")
    # Options write these two; setting them here has them restored after the test.
    monkeypatch.setenv("ARCHON_DISABLE_PLUGINS", "")
    monkeypatch.setenv("ARCHON_TRACEBACK", "0")

    def run(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        captured = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), captured.out, captured.err)

    return run
