"""Finds the installed plugins without importing any.

``importlib.metadata.entry_points`` fails at the first distribution with a damaged ``entry_points.txt``; here each
distribution is read separately.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import dataclass

from archon_core.installing import name_or_folder, update_advice
from archon_core.plugins.hookspecs import PROJECT_NAME
from archon_core.plugins.status import PluginStatus, describe_error


@dataclass(frozen=True)
class Discovery:
    """The installed plugins.

    Attributes:
        entry_points: entry points of the group ``archon``, sorted by distribution and name.
        unreadable: distributions with unreadable entry points.
    """

    entry_points: tuple[importlib.metadata.EntryPoint, ...] = ()
    unreadable: tuple[PluginStatus, ...] = ()


def discover(path: Sequence[str] | None = None) -> Discovery:
    """Find the installed plugins.

    Args:
        path: folders to look for distributions in; ``None`` for ``sys.path``.
    """
    search = {} if path is None else {"path": list(path)}
    entry_points: list[importlib.metadata.EntryPoint] = []
    unreadable: list[PluginStatus] = []
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions(**search):
        if not _mentions_plugins(distribution):
            continue
        name = name_or_folder(distribution)
        if normalise(name) in seen:  # the first one on the path is the one whose modules are imported
            continue
        seen.add(normalise(name))
        try:
            entry_points += [point for point in distribution.entry_points if point.group == PROJECT_NAME]
        except Exception as error:
            reinstall = update_advice(name, "pip install --force-reinstall --no-deps")
            cause = f"its entry_points.txt cannot be read ({describe_error(error)}); reinstall it: {reinstall}"
            unreadable.append(PluginStatus(name, name, "", "", status="failed", cause=cause, error=error))
    return Discovery(
        entry_points=tuple(sorted(entry_points, key=lambda point: (distribution_name(point), point.name))),
        unreadable=tuple(unreadable),
    )


def distribution_name(entry_point: importlib.metadata.EntryPoint) -> str:
    """The package of an entry point; see ``installing.name_or_folder``. Empty for one created in code."""
    return name_or_folder(entry_point.dist) if entry_point.dist else ""


def distribution_version(entry_point: importlib.metadata.EntryPoint) -> str:
    """The version of an entry point's package; empty if unknown."""
    return _version(entry_point.dist) if entry_point.dist else ""


@functools.lru_cache(maxsize=256)  # see name_or_folder
def _version(distribution: importlib.metadata.Distribution) -> str:
    try:
        return distribution.version or ""
    except Exception:  # a distribution without METADATA: what is raised depends on the Python version
        return ""


def normalise(name: str) -> str:
    """A distribution's or entry point's name, normalised for comparison (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _mentions_plugins(distribution: importlib.metadata.Distribution) -> bool:
    # The text of a hundred distributions is read quickly; parsing the metadata of each is not quick.
    try:
        text = distribution.read_text("entry_points.txt") or ""
    except (OSError, UnicodeDecodeError):  # nothing says that it is one of ours
        return False
    return re.search(rf"^\s*\[\s*{PROJECT_NAME}\s*\]", text, re.MULTILINE) is not None
