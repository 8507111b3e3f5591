"""What is uploaded: wheels and sdists hold what users need and nothing else, and say what they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from release_build import Built, built_problems
from workspace import Package, find_packages


@pytest.mark.parametrize("name", find_packages())
def test_wheel_and_sdist_pass_every_check_of_a_release(
    name: str, built: dict[str, Built], packages: dict[str, Package], tmp_path: Path
) -> None:
    assert built_problems(built[name], packages[name], packages.values(), tmp_path) == []
