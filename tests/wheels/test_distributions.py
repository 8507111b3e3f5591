"""What is uploaded: wheels and sdists hold what users need and nothing else, and say what they need."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from fresh_environment import FreshEnvironment, missing_here

from release_build import Built, own_problems, twine_problems
from release_imports import known_distributions
from workspace import Package, find_packages


@pytest.fixture(scope="module")
def distributions(packages: dict[str, Package]) -> dict[str, Collection[str]]:
    """Top-level module -> its distributions."""
    return known_distributions(packages.values())


@pytest.mark.parametrize("name", find_packages())
def test_wheel_and_sdist_pass_every_check_of_a_release(
    name: str,
    built: dict[str, Built],
    packages: dict[str, Package],
    distributions: dict[str, Collection[str]],
    tmp_path: Path,
) -> None:
    assert own_problems(built[name], packages[name], distributions, tmp_path) == []


def test_twine_finds_nothing_to_say_about_any_file(built: dict[str, Built]) -> None:
    assert twine_problems([file for files in built.values() for file in (files.wheel, files.sdist)]) == []


@pytest.mark.parametrize(
    ("name", "extra"),
    [(name, extra) for name, package in find_packages().items() for extra in package.optional_requirements],
)
def test_an_extra_installs_what_it_is_for(
    name: str, extra: str, packages: dict[str, Package], make_fresh: Callable[..., FreshEnvironment]
) -> None:
    if missing := missing_here(packages[name].optional_requirements[extra]):
        pytest.skip(f"needs {', '.join(missing)}, with many dependencies: pip install them to run this case")
    fresh = make_fresh(f"{name}[{extra}]")
    for requirement in packages[name].optional_requirements[extra]:
        version = fresh.python("-c", f"import importlib.metadata as m; print(m.version({requirement.name!r}))")
        assert requirement.specifier.contains(version.stdout.strip(), prereleases=True), version.stderr
