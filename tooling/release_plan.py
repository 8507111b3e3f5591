"""What a release changes, says and needs, worked out before anything is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from packaging.version import Version

from release_bounds import ApiSince, bound_problems, read_constraints, shown, third_party_problems, unreleased_needs
from release_changelog import notes_of, released_versions, with_release
from release_problem import ReleaseError
from release_tag import parse_tag
from workspace import CORE, Package, find_packages


@dataclass(frozen=True)
class ReleasePlan:
    """One release.

    Attributes:
        tag: of it.
        package: as it will be.
        packages: all of them, this one as it will be.
        notes: what the change log says about it.
        edits: file -> new text, of the version and the change log; empty when both are there already.
        first: what is to be released before it: its bounds name versions of ours that no release has.
        remarks: what a release manager should think about.
    """

    tag: str
    package: Package
    packages: Mapping[str, Package]
    notes: str
    edits: Mapping[Path, str]
    first: tuple[str, ...]
    remarks: tuple[str, ...]


def plan_release(root: Path, tag: str, day: date, api_since: ApiSince) -> ReleasePlan:
    """Work out a release.

    Args:
        root: of the repository.
        tag: ``<distribution>-v<version>``.
        day: of the release, for the change log.
        api_since: plugin API -> first release of core that has it.

    Raises:
        ReleaseError: the tag, the change log or bounds do not allow it; with everything that was found.
    """
    packages = find_packages(root)
    name, version = parse_tag(tag, packages)
    before = packages[name]
    package = replace(before, version=version)
    packages[name] = package
    problems: list[str] = []
    edits: dict[Path, str] = {}
    if version < before.version:
        problems.append(f"tag {tag!r}: {name} is {before.version} already; allowed is a version from it on: choose one")
    elif version != before.version:
        edits[package.version_file] = with_version(package.version_file.read_text(encoding="utf-8"), version)
    changelogs = {other.name: read_text(other.changelog) for other in packages.values()}
    notes = ""
    try:
        label = _label(root, package.changelog)
        notes = notes_of(changelogs[name], version, name=label)
        if not notes:
            edits[package.changelog] = with_release(changelogs[name], version, day, name=label)
            notes = notes_of(changelogs[name], None, name=label)
        elif notes_of(changelogs[name], None, name=label):
            problems.append(
                f"{label}: found {version}, released, and more under '## Unreleased'; choose the next version"
            )
    except ReleaseError as error:
        problems += error.problems
    problems += bound_problems(package, packages, api_since)
    tested = read_constraints(read_text(root / "constraints" / "tested.txt"))
    problems += third_party_problems(packages, tested)
    if problems:
        raise ReleaseError(*problems)
    others = {
        other.name: released_versions(changelogs[other.name], name=_label(root, other.changelog))
        for other in packages.values()
        if other.name != name
    }
    first = tuple(f"{shown(need)}: no release of {need.name} fits" for need in unreleased_needs(package, others))
    return ReleasePlan(tag, package, packages, notes, edits, first, _remarks(package, packages, changelogs, root))


def with_version(text: str, version: Version) -> str:
    """A module's text with another ``__version__``."""
    changed, n = re.subn(r'(?m)^__version__ = "[^"]*"$', f'__version__ = "{version}"', text)
    assert n == 1, "the workspace read a version from this text"
    return changed


def next_commands(plan: ReleasePlan, files: tuple[str, ...]) -> str:
    """What to do after a release was built: commands to copy.

    Args:
        plan: of the release.
        files: that were built, from the repository's root.
    """
    title = f"{plan.package.name} {plan.package.version}"
    commit = [
        "hatch run sync  # installed packages have the new version",
        "hatch run python tooling/docs.py  # pages that name versions",
        f"git add packages/{plan.package.folder.name} docs",
        f'git commit -m "{title}"',
        f'git tag -a {plan.tag} -m "{title}"',
        f"git push origin HEAD {plan.tag}",
    ]
    return "\n".join([*(commit if plan.edits else []), f"hatch run python -m twine upload {' '.join(files)}"])


def read_text(path: Path) -> str:
    """A file's text; empty when there is none, which the checks then report."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _remarks(
    package: Package, packages: Mapping[str, Package], changelogs: Mapping[str, str], root: Path
) -> tuple[str, ...]:
    core, bound = packages[CORE], package.requirement(CORE)
    label = _label(root, core.changelog)
    is_behind = released_versions(changelogs[CORE], name=label) and notes_of(changelogs[CORE], None, name=label)
    if bound is None or not is_behind:
        return ()
    return (
        f"{CORE} has changes that are not released; if {package.name} uses any, release {CORE} first and raise its "
        f"bound, which is {shown(bound)}",
    )


def _label(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
