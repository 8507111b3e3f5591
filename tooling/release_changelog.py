"""Change logs: one section per release, newest first, and above them what is not released yet.

::

    # Changelog of archon-moe

    ## Unreleased

    - What users see of a change.

    ## 0.1.0 - 2026-11-21

    - ...
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

from packaging.version import InvalidVersion, Version

from release_problem import ReleaseError

UNRELEASED = "Unreleased"
_HEADING = re.compile(r"^## +(.+?) *$", re.MULTILINE)
_RELEASED = re.compile(r"(?P<version>\S+) - (?P<day>\d{4}-\d{2}-\d{2})")


@dataclass(frozen=True)
class Section:
    """One heading of the second level with what stands under it.

    Attributes:
        version: ``None`` for what is not released.
        body: without the heading and the empty lines around it.
    """

    version: Version | None
    body: str


def read_changelog(text: str, *, name: str) -> list[Section]:
    """The sections, newest first.

    Args:
        text: of the file.
        name: of the file, for messages.

    Raises:
        ReleaseError: a heading has another form, or they are in another order.
    """
    parts = _HEADING.split(text)[1:]
    sections = [
        Section(_version_of(title, name), body.strip()) for title, body in zip(parts[::2], parts[1::2], strict=True)
    ]
    unreleased = [at for at, section in enumerate(sections) if section.version is None]
    if unreleased not in ([], [0]):
        raise ReleaseError(f"{name}: found '## {UNRELEASED}' below a release; it stands once, above all releases")
    versions = [section.version for section in sections if section.version is not None]
    if versions != sorted(set(versions), reverse=True):
        listed = ", ".join(map(str, versions))
        raise ReleaseError(f"{name}: found the releases {listed}; each stands there once, the newest first")
    return sections


def released_versions(text: str, *, name: str) -> list[Version]:
    """The versions with a section, newest first."""
    return [section.version for section in read_changelog(text, name=name) if section.version is not None]


def notes_of(text: str, version: Version | None, *, name: str) -> str:
    """What a section says; ``None`` stands for what is not released. Empty when there is no such section."""
    return next((section.body for section in read_changelog(text, name=name) if section.version == version), "")


def with_release(text: str, version: Version, day: date, *, name: str) -> str:
    """The file in which what was not released is the release ``version``, with room for what comes next above it.

    Raises:
        ReleaseError: nothing is unreleased, or the version is not above the last one.
    """
    released = released_versions(text, name=name)
    if released and version <= released[0]:
        raise ReleaseError(
            f"{name}: found {released[0]}, released before; allowed is a version above it, not {version}: choose one"
        )
    if not notes_of(text, None, name=name):
        raise ReleaseError(
            f"{name}: found nothing under '## {UNRELEASED}'; a release says what changed for its users: write it there"
        )
    heading = next(match for match in _HEADING.finditer(text) if match[1] == UNRELEASED)
    return f"{text[: heading.start()]}## {UNRELEASED}\n\n## {version} - {day.isoformat()}{text[heading.end() :]}"


def _version_of(title: str, name: str) -> Version | None:
    if title == UNRELEASED:
        return None
    match = _RELEASED.fullmatch(title)
    try:
        if match is None:
            raise InvalidVersion
        date.fromisoformat(match["day"])
        return Version(match["version"])
    except ValueError as error:  # InvalidVersion is one too
        raise ReleaseError(
            f"{name}: found the heading '## {title}'; allowed are '## {UNRELEASED}' and '## X.Y.Z - YYYY-MM-DD'"
        ) from error
