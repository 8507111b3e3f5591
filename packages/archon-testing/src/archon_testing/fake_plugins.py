"""Pytest fixtures for plugins: fake distributions, installed as pip would, and ``archon`` run in this process.

Import the fixtures in a ``conftest.py``::

    from archon_testing.fake_plugins import archon, site

    __all__ = ["archon", "site"]
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from archon_core.cli.main import main
from archon_core.plugins import registry

HEADER = 'from archon_core.plugins import *\n\nARCHON_PLUGIN_API = "1.0"\n\n'


@dataclass(frozen=True)
class FakeSite:
    """A folder of installed distributions.

    Attributes:
        path: on ``sys.path``.
    """

    path: Path

    def install(
        self,
        distribution: str,
        source: str,
        *,
        name: str | None = None,
        version: str = "1.0",
        header: str = HEADER,
        entry_points: str | None = None,
    ) -> str:
        """Install a distribution whose plugin module has this source; return the module's name."""
        module = distribution.replace("-", "_") + "_plugin"
        (self.path / f"{module}.py").write_text(header + textwrap.dedent(source))
        info = self.path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        default = f"[archon]\n{name or distribution.removeprefix('archon-')} = {module}\n"
        (info / "entry_points.txt").write_text(default if entry_points is None else entry_points)
        return module


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    """An empty folder of distributions, first on ``sys.path``; resets the registry of the process."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("ARCHON_DISABLE_PLUGINS", raising=False)
    monkeypatch.delenv("ARCHON_STRICT_PLUGINS", raising=False)
    modules_before = set(sys.modules)
    registry.cache_clear()
    yield FakeSite(folder)
    registry.cache_clear()
    for name in set(sys.modules) - modules_before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@dataclass(frozen=True)
class Outcome:
    """The result of a command.

    Attributes:
        code: exit code.
        out: standard output.
        err: standard error.
    """

    code: int
    out: str
    err: str


@pytest.fixture
def archon(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run ``archon`` with these arguments; the plugins of ``site`` are installed in addition."""
    monkeypatch.setenv("COLUMNS", "200")
    # Options write these two variables; set here, they are restored after the test.
    monkeypatch.setenv("ARCHON_DISABLE_PLUGINS", "")
    monkeypatch.setenv("ARCHON_TRACEBACK", "0")

    def run(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        captured = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), captured.out, captured.err)

    return run


@dataclass(frozen=True)
class LayoutMessage:
    """A parsed layout error.

    Attributes:
        option: the option at its start.
        found, allowed, fix: its three statements.
        shown: the layout as printed above the carets.
        carets: marked columns, as (start, end) pairs.
    """

    option: str
    found: str
    allowed: str
    fix: str
    shown: str
    carets: list[tuple[int, int]]

    @property
    def suggestions(self) -> list[str]:
        """The layouts in the fix, each followed by its number of ranks."""
        return re.findall(r"'([^']*)' \((?:[0-9]+ ranks?|on the ranks of the trainer)\)", self.fix)


@pytest.fixture(scope="session")
def read_message() -> Callable[[Exception], LayoutMessage]:
    """A function that parses a layout error; it fails if a statement is missing."""
    return read_layout_error


def read_layout_error(error: Exception) -> LayoutMessage:
    """The parts of a layout error. AssertionError: one of its statements is missing."""
    opening, shown, carets, *statements = str(error).split("\n")
    forms = (r"(.+?) ['\"].*?: found (.+)", r"allowed: (.+)", r"fix: (.+)")
    first, allowed, fix = (re.fullmatch(form, line) for form, line in zip(forms, (opening, *statements), strict=True))
    assert first is not None, str(error)
    assert allowed is not None, str(error)
    assert fix is not None, str(error)
    assert shown.startswith("  "), str(error)
    assert re.fullmatch(r"  [ ^]*\^", carets), "at least one caret, nothing else"
    return LayoutMessage(
        option=first[1],
        found=first[2],
        allowed=allowed[1],
        fix=fix[1],
        shown=shown[2:],
        carets=[match.span() for match in re.finditer(r"\^+", carets[2:])],
    )
