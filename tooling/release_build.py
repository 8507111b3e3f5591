"""Builds distributions of a package and holds them against all checks."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

from release_contents import sdist_problems, wheel_problems
from release_imports import import_problems, known_distributions, package_imports
from release_problem import ReleaseError
from workspace import Package


@dataclass(frozen=True)
class Built:
    """The two files of a release."""

    wheel: Path
    sdist: Path


def build(folder: Path, destination: Path) -> Built:
    """Build wheel and sdist of the package in ``folder`` with the hatchling of this environment.

    Raises:
        ReleaseError: hatchling fails; its message is passed on.
    """
    _run_hatchling(folder, destination)
    return Built(_only(destination, "*.whl"), _only(destination, "*.tar.gz"))


def built_problems(built: Built, package: Package, packages: Iterable[Package], scratch: Path) -> list[str]:
    """Everything that is wrong with built files.

    Args:
        built: the files.
        package: whose they are, as in the folder that they were built from.
        packages: all of ours.
        scratch: an empty folder.
    """
    problems = own_problems(built, package, known_distributions(packages), scratch)
    return problems + twine_problems([built.wheel, built.sdist])


def own_problems(
    built: Built, package: Package, distributions: Mapping[str, Collection[str]], scratch: Path
) -> list[str]:
    """The problems of ``built_problems`` except those of twine.

    Args:
        built: the files.
        package: whose they are.
        distributions: as ``known_distributions`` gives them.
        scratch: an empty folder.
    """
    problems = [*wheel_problems(built.wheel, package), *sdist_problems(built.sdist, package)]
    problems += import_problems(package_imports(package.source), read_metadata(built.wheel), distributions)
    return problems + rebuilt_problems(built, scratch)


def read_metadata(wheel: Path) -> Message:
    """The METADATA of a wheel."""
    with ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def rebuilt_problems(built: Built, scratch: Path) -> list[str]:
    """Whether the sdist, unpacked elsewhere, builds into the same wheel, byte for byte."""
    filtered = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 and later
    with tarfile.open(built.sdist) as archive:
        archive.extractall(scratch, **filtered)
    unpacked = scratch / built.sdist.name.removesuffix(".tar.gz")
    destination = scratch / "rebuilt"
    _run_hatchling(unpacked, destination, "-t", "wheel")
    rebuilt = _only(destination, "*.whl")
    if rebuilt.read_bytes() == built.wheel.read_bytes():
        return []
    with ZipFile(built.wheel) as first, ZipFile(rebuilt) as second:
        before, after = ({name: file.read(name) for name in file.namelist()} for file in (first, second))
    differing = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return [
        f"{built.sdist.name}: builds into another wheel; different are {', '.join(differing) or 'names and order'}; "
        "see [tool.hatch.build.targets.sdist] in pyproject.toml"
    ]


def twine_problems(files: Sequence[Path]) -> list[str]:
    """What ``twine check --strict`` finds."""
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [] if done.returncode == 0 else [f"twine check --strict:\n{(done.stdout + done.stderr).strip()}"]


def _run_hatchling(folder: Path, destination: Path, *options: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(destination.resolve()), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"building {folder.name} failed:\n{(done.stdout + done.stderr).strip()}")


def _only(folder: Path, pattern: str) -> Path:
    files = list(folder.glob(pattern))
    if len(files) != 1:
        raise ReleaseError(f"{folder}: found {len(files)} files {pattern}; build into an empty folder")
    return files[0]
