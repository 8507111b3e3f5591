"""``archon new schedule | reward | algorithm``: small packages with one spec and its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from archon_scaffold.folder import new_folder, write_files
from archon_scaffold.names import PackageName
from archon_scaffold.rendering import render_folder

Kind = Literal["schedule", "reward", "algorithm"]

REQUIRES: dict[Kind, tuple[str, ...]] = {
    "schedule": ("archon-core>=0.1,<1",),
    "reward": ("archon-core>=0.1,<1",),
    "algorithm": ("archon-core>=0.1,<1", "archon-rl>=0.1,<1"),
}

TEST_REQUIRES: dict[Kind, tuple[str, ...]] = {
    "schedule": ("archon-models-qwen>=0.1,<1", "archon-pipeline>=0.1,<1", "archon-testing>=0.1,<1", "pytest>=8.3"),
    "reward": ("pytest>=8.3",),
    "algorithm": ("archon-models-qwen>=0.1,<1", "archon-rollout>=0.1,<1", "pytest>=8.3"),
}


def small_files(kind: Kind, name: PackageName) -> dict[str, str]:
    """Path -> text of every file of a package."""
    context = {
        "spec": name.spec,
        "module": name.module,
        "kind": kind,
        "description": f"{name.title}: a {kind} for the Archon training engine",
        "requires": REQUIRES[kind],
        "test_requires": TEST_REQUIRES[kind],
    }
    return {**render_folder("package", context), **render_folder(kind, context)}


def write_small(kind: Kind, name: PackageName, folder: Path) -> None:
    """Write a package. Raises ConfigError when ``folder`` exists or cannot be written."""
    with new_folder(folder) as draft:
        write_files(draft, small_files(kind, name))
