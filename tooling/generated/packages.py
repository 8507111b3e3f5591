"""Generates the table of docs/reference/packages.md: the content of each package, from metadata and specs."""

from __future__ import annotations

import tomllib
from pathlib import Path

from archon_core.plugins import registry
from archon_core.plugins.hints import label
from archon_core.plugins.kinds import SPEC_TYPES
from generated.tables import codes, table


def render_packages(root: Path) -> str:
    """One row per package under ``packages/``."""
    rows = []
    for path in sorted(root.glob("packages/*/pyproject.toml")):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        name = project["name"]
        brings = []
        for kind in SPEC_TYPES:
            names = [spec.name for spec in registry().all(kind) if (spec.origin or "archon-core") == name]
            if names:
                brings.append(f"{label(kind.kind)} {codes(names)}")
        page = f"[{name}](../../packages/{name}/README.md)"
        rows.append([page, project["description"], "; ".join(brings) or "no plugin"])
    return table(["package", "", "provides"], rows)
