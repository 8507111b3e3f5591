"""Model packages, written once for all tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from archon_scaffold.models.architecture import Architecture
from archon_scaffold.models.writing import write_model
from archon_scaffold.names import PackageName


@dataclass(frozen=True)
class Written:
    """A package and what it was written for."""

    folder: Path
    architecture: Architecture

    def text(self, name: str) -> str:
        """Of a module, or of another file by its path."""
        inside = self.folder / "src" / self.folder.name.replace("-", "_") / f"{name}.py"
        return (inside if inside.exists() else self.folder / name).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Written]:
    """``write(entries)``: the package for a configuration; the same one for the same entries."""
    written: dict[str, Written] = {}
    root = tmp_path_factory.mktemp("packages")

    def write_once(entries: dict[str, Any]) -> Written:
        key = json.dumps(entries, sort_keys=True)
        if key not in written:
            name = f"written-{len(written)}"
            file = root / f"{name}.json"
            file.write_text(key, encoding="utf-8")
            architecture = write_model(PackageName(name, name.replace("-", "_")), root / name, str(file))
            written[key] = Written(root / name, architecture)
        return written[key]

    return write_once
