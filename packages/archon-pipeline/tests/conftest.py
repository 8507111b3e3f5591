"""The fixture ``archon``, which runs the command in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from archon_core.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """The outcome of a command.

    Attributes:
        code: exit code.
        out: standard output.
        err: standard error.
    """

    code: int
    out: str
    err: str


@pytest.fixture
def archon(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run ``archon`` with arguments, in a terminal of ``columns`` columns."""
    # The option --traceback sets this variable; set here, it is restored after the test.
    monkeypatch.setenv("ARCHON_TRACEBACK", "0")

    def run(*arguments: str, columns: int = 160) -> Outcome:
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        captured = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), captured.out, captured.err)

    return run
