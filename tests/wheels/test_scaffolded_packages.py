"""What ``archon new`` generates is a package like any other: it builds, installs from its wheel, and its tests pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fresh_environment import FreshEnvironment, make_environment

from release_build import build

SCAFFOLD = "archon-scaffold"

EVERY_KIND = ("model", "schedule", "reward", "algorithm")


@pytest.fixture(scope="module")
def author(make_fresh: Callable[..., FreshEnvironment]) -> FreshEnvironment:
    """What someone has who writes a package: the scaffold alone."""
    return make_fresh(SCAFFOLD)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_generated_package_installs_from_its_wheel_and_its_tests_pass(
    author: FreshEnvironment, wheels: Path, tmp_path: Path, kind: str
) -> None:
    generated = author.work / f"my-{kind}"
    done = author.archon("new", kind, f"demo-{kind}", "--dir", str(generated))
    assert done.returncode == 0, done.stderr
    project = next(path.parent for path in sorted(generated.rglob("pyproject.toml")))
    wheel = build(project, tmp_path / "dist").wheel
    shelf = tmp_path / "shelf"
    shutil.copytree(wheels, shelf)
    shutil.copy2(wheel, shelf)
    name = wheel.name.partition("-")[0].replace("_", "-")
    user = make_environment(tmp_path / "user", shelf, [f"{name}[test]"])
    listed = user.archon("plugins")
    assert listed.returncode == 0, listed.stderr
    assert name in listed.stdout
    shutil.copytree(project / "tests", user.work / "tests")
    passed = user.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", timeout=560)
    assert passed.returncode == 0, passed.stdout + passed.stderr
    again = author.archon("new", kind, f"demo-{kind}", "--dir", str(generated))
    assert again.returncode != 0, "it refuses to overwrite"
