"""Fake plugins, installed as pip would: a module and a ``.dist-info`` folder on the path."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

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
    """An empty folder of distributions that is first on ``sys.path``; the process's registry is made anew."""
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
