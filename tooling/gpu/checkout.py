"""Use the packages of this checkout without installing them: sources on the path, plugins discoverable.

Plugins are found by the metadata of installed distributions. Where nothing is installed, ``write_metadata`` writes what
an installation would, made from the packages' own files.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

NEEDED = ("torch", "transformers", "safetensors", "pluggy")
"""Third-party packages without which no check runs. What only the command line needs (omegaconf, typer, rich) may be
missing."""


def source_folders() -> list[Path]:
    """``src`` of every package."""
    return sorted(ROOT.glob("packages/*/src"))


def write_metadata(folder: Path) -> None:
    """Write a ``dist-info`` for every package into ``folder``: name, version and entry points."""
    for source in source_folders():
        project = tomllib.loads((source.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        name, version = project["name"], _version(source)
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        lines = []
        for group, points in project.get("entry-points", {}).items():
            lines += [f"[{group}]", *(f"{point} = {target}" for point, target in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def unpack_wheels(wheels: Path, folder: Path) -> None:
    """Unpack every wheel of a folder: what ``pip install --target`` would do, without pip."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)


def put_on_path(*folders: Path) -> None:
    """Put folders first on the path of this process and of its children."""
    texts = [str(folder) for folder in folders]
    sys.path[:0] = texts
    os.environ["PYTHONPATH"] = os.pathsep.join([*texts, *filter(None, [os.environ.get("PYTHONPATH")])])


def missing_packages() -> list[str]:
    """Those of ``NEEDED`` that cannot be imported."""
    return [name for name in NEEDED if find_spec(name) is None]


def _version(source: Path) -> str:
    [init] = source.glob("*/__init__.py")
    found = re.search(r'^__version__ = "(.+)"$', init.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None, f"{init} has no __version__"
    return found[1]
