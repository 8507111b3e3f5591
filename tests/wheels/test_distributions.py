"""What is uploaded: wheels and sdists hold what users need and nothing else, and say what they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from release_build import Built, built_problems, read_metadata
from release_plan import read_text
from workspace import ROOT, Package, find_packages


@pytest.mark.parametrize("name", find_packages())
def test_wheel_and_sdist_pass_every_check_of_a_release(
    name: str, built: dict[str, Built], packages: dict[str, Package], tmp_path: Path
) -> None:
    assert built_problems(built[name], packages[name], packages.values(), tmp_path) == []


@pytest.mark.parametrize("name", find_packages())
def test_the_licence_and_the_bounds_are_those_of_pyproject(name: str, built: dict[str, Built]) -> None:
    metadata = read_metadata(built[name].wheel)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "torch>=2.11" in metadata.get_all("Requires-Dist", []) or name == "archon-scaffold"
    if name != "archon-core":
        bounds = [text for text in metadata.get_all("Requires-Dist", []) if text.startswith("archon-core")]
        assert len(bounds) == 1
        assert bounds[0].endswith("<1,>=0.1")


def test_every_package_stands_in_the_indexes_of_the_repository(packages: dict[str, Package]) -> None:
    readme, changelogs = read_text(ROOT / "README.md"), read_text(ROOT / "CHANGELOG.md")
    for name in packages:
        assert f"(packages/{name})" in readme
        assert f"(packages/{name}/CHANGELOG.md)" in changelogs
