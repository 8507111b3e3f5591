"""Every wheel of the repository, built once for all workers, and fresh environments made of them."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from release_build import Built, build
from workspace import Package, find_packages

# Files of a tests folder are no modules otherwise.
sys.path.insert(0, str(Path(__file__).parent))

from fresh_environment import FreshEnvironment, make_environment

collect_ignore = ["outside_model", "outside_pipeline"]  # packages that only fresh environments have

PACKAGES = find_packages()

SHARE_NOTHING = ("test_distributions", "test_release", "test_scaffolded_packages")
"""Files whose tests have no environment in common, or a small one; any worker runs any of them."""

MakeEnvironment = Callable[..., FreshEnvironment]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder ``wheels``: ``hatch run test-wheels`` runs them separately."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("wheels")
            item.add_marker(pytest.mark.xdist_group(group_of(item)))


def group_of(item: pytest.Item) -> str:
    """Tests that share an environment run in one worker; plugins that are alone have one each."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if item.path.stem in SHARE_NOTHING:
        return item.nodeid
    return parameters.get("alone", item.path.stem)


@pytest.fixture(scope="session")
def packages() -> dict[str, Package]:
    """Every package of the repository by name."""
    return PACKAGES


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> dict[str, Built]:
    """Package -> its wheel and sdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "built"
    folder.mkdir(exist_ok=True)
    # Workers share the work: at first each passes over packages that another one is building, then it waits for them.
    for wait in (fcntl.LOCK_NB, 0):
        for package in PACKAGES.values():
            with (folder / f"{package.name}.lock").open("w") as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | wait)
                if not (folder / package.name).is_dir():
                    new = folder / f"{package.name}.new"
                    shutil.rmtree(new, ignore_errors=True)
                    build(package.folder, new)
                    new.rename(folder / package.name)
    return {
        name: Built(next((folder / name).glob("*.whl")), next((folder / name).glob("*.tar.gz"))) for name in PACKAGES
    }


@pytest.fixture(scope="session")
def wheels(built: dict[str, Built], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every wheel, and nothing else."""
    folder = tmp_path_factory.mktemp("wheels")
    for files in built.values():
        shutil.copy2(files.wheel, folder)
    return folder


@pytest.fixture(scope="session")
def make_fresh(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeEnvironment:
    """Makes an environment in which ``pip install`` was called with the given words."""

    def make(*requirements: str, find: Path = wheels) -> FreshEnvironment:
        return make_environment(tmp_path_factory.mktemp("fresh"), find, requirements)

    return make
