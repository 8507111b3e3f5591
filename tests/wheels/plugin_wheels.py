"""Wheels of small plugins from outside: written, built, and laid where pip finds them."""

from __future__ import annotations

import shutil
from pathlib import Path

from release_build import build

OUTSIDE_MODEL = Path(__file__).parent / "outside_model"
OUTSIDE_PIPELINE = Path(__file__).parent / "outside_pipeline"


def build_plugin(
    folder: Path, name: str, module: str, *, version: str = "0.1.0", needs: str = "archon-core>=0.1,<1"
) -> Path:
    """Build a plugin of one module.

    Args:
        folder: a new one, for source and wheel.
        name: of the distribution; its module has the same name with underscores.
        module: source of the module that the entry point names.
        version: of the distribution.
        needs: its only dependency.

    Returns:
        the wheel.
    """
    import_name = name.replace("-", "_")
    source = folder / name / "src" / import_name
    source.mkdir(parents=True)
    (source / "__init__.py").write_text("", encoding="utf-8")
    (source / "plugin.py").write_text(module, encoding="utf-8")
    (folder / name / "pyproject.toml").write_text(
        f"""
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "{version}"
requires-python = ">=3.11"
dependencies = ["{needs}"]

[project.entry-points.archon]
{name} = "{import_name}.plugin"

[tool.hatch.build.targets.wheel]
packages = ["src/{import_name}"]
""",
        encoding="utf-8",
    )
    return build(folder / name, folder / f"{name}-dist").wheel


def build_outside(package: Path, folder: Path) -> Path:
    """Build one of the packages beside this module in ``folder``; returns its wheel."""
    source = folder / package.name
    shutil.copytree(package, source)
    return build(source, folder / f"{package.name}-dist").wheel
