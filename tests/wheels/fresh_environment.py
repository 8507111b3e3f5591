"""Virtual environments as a user has them: Archon's packages from built wheels alone, and what these declare to need.

pip resolves every installation against what is there, without an index. Third-party packages, torch above all, are too
large to be installed a dozen times: those that the wheels declare, and what these need in turn, are linked from the
environment that runs the tests, which has them at the versions of ``constraints/tested.txt``. What no wheel declares is
not linked, so that a missing dependency is missing here too.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import venv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from functools import cache
from pathlib import Path, PurePath
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LEAKS = ("PYTHON", "PIP_", "ARCHON_", "VIRTUAL_ENV", "HATCH_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_", "PYTEST")
"""Beginnings of environment variables that belong to the tests' own environment."""


@dataclass(frozen=True)
class FreshEnvironment:
    """A virtual environment and a folder to run commands in.

    Attributes:
        folder: the virtual environment.
        work: an empty folder outside the repository.
        wheels: where pip looks for packages.
    """

    folder: Path
    work: Path
    wheels: Path

    def archon(self, *arguments: str, timeout: float = 240, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run ``archon``."""
        return self._run(str(self.folder / "bin" / "archon"), *arguments, timeout=timeout, **variables)

    def python(self, *arguments: str, timeout: float = 240, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the interpreter."""
        return self._run(str(self.folder / "bin" / "python"), *arguments, timeout=timeout, **variables)

    def pip(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``pip`` for this environment. It reads no configuration: it would find more than there should be."""
        pip = (sys.executable, "-m", "pip", "--python", str(self.folder / "bin" / "python"), "--isolated")
        return self._run(*pip, "--disable-pip-version-check", *arguments, timeout=300)

    def pip_install(self, *requirements: str) -> subprocess.CompletedProcess[str]:
        """What ``pip install`` does, of the built wheels and of files that are named."""
        found = ("--no-index", "--find-links", str(self.wheels), "--no-cache-dir")
        return self.pip("install", "--quiet", *found, *requirements)

    def _run(self, *command: str, timeout: float, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(LEAKS)}
        # A width at which no message is broken; one thread, since several tests share the cores.
        environment |= {"COLUMNS": "200", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **variables}
        return subprocess.run(
            command, cwd=self.work, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )


def make_environment(folder: Path, wheels: Path, requirements: Iterable[str]) -> FreshEnvironment:
    """An environment in which pip has installed ``requirements``.

    Args:
        folder: new; the virtual environment and the work folder are made in it.
        wheels: all that pip may choose from.
        requirements: as a user writes them after ``pip install``.
    """
    requirements = list(requirements)
    work = folder / "work"
    work.mkdir(parents=True)
    fresh = FreshEnvironment(folder / "venv", work, wheels)
    venv.EnvBuilder(symlinks=True, with_pip=False).create(fresh.folder)
    link_third_party(fresh, third_party_closure(requirements, read_wheels(wheels)))
    if requirements:
        installed = fresh.pip_install(*requirements)
        assert installed.returncode == 0, f"pip install {' '.join(requirements)}:\n{installed.stdout}{installed.stderr}"
    return fresh


def read_wheels(folder: Path) -> dict[str, Message]:
    """Name -> metadata of every wheel in a folder."""
    found = {}
    for path in sorted(folder.glob("*.whl")):
        with ZipFile(path) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = Parser().parsestr(wheel.read(name).decode())
        found[canonicalize_name(metadata["Name"])] = metadata
    return found


def missing_here(requirements: Iterable[Requirement]) -> list[str]:
    """Those that this process's environment lacks, so that no fresh one can get them."""
    here = {canonicalize_name(one.name) for one in importlib.metadata.distributions()}
    return [one.name for one in requirements if canonicalize_name(one.name) not in here]


def third_party_closure(requirements: Iterable[str], wheels: Mapping[str, Message]) -> set[str]:
    """The names of everything that is needed and is no wheel of ours, extras and markers considered."""
    todo = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    third_party: set[str] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        ours = wheels.get(name)
        if ours is None:
            third_party.add(name)
        declared = ours.get_all("Requires-Dist", []) if ours else importlib.metadata.requires(name) or []
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            needed = [Requirement(text) for text in declared]
            todo += [need for need in needed if need.marker is None or need.marker.evaluate({"extra": extra})]
    return third_party


def link_third_party(fresh: FreshEnvironment, names: Iterable[str]) -> None:
    """Put distributions of this process's environment on the path of a fresh one."""
    farm = fresh.folder / "third-party"
    farm.mkdir(exist_ok=True)
    for name in sorted(names):
        site, parts = _parts(name)
        for part in parts:
            target = farm / part
            if not target.is_symlink():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(site / part)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    pth = fresh.folder / "lib" / version / "site-packages" / "third-party.pth"
    pth.write_text(f"{farm}\n", encoding="utf-8")


@cache
def _parts(name: str) -> tuple[Path, frozenset[Path]]:
    """Where a distribution is installed, and the outermost files and folders that it does not share with others."""
    distribution = importlib.metadata.distribution(name)
    assert distribution.files is not None, f"{name}: its installation has no RECORD, so its files are unknown"
    in_place = '"editable": true' in (distribution.read_text("direct_url.json") or "")
    assert not in_place, f"{name} is installed in place: what is built from this repository comes from wheels only"
    site = Path(str(distribution.locate_file("")))
    own: set[Path] = set()
    for file in map(PurePath, distribution.files):
        if ".." in file.parts or file.parts[0] == "__pycache__" or any(parent in own for parent in file.parents):
            continue
        # A folder without __init__.py may be shared by several distributions.
        for depth in range(1, len(file.parts) + 1):
            part = Path(*file.parts[:depth])
            if depth == len(file.parts) or part.suffix == ".dist-info" or (site / part / "__init__.py").is_file():
                own.add(part)
                break
    return site, frozenset(own)
