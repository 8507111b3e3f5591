"""What pip calls an installed package, and what to do about a package that pip has no name for.

A distribution whose metadata are damaged has no name that pip takes. The folder of its metadata stands for it then,
in listings, in messages and in ``ARCHON_DISABLE_PLUGINS``.
"""

from __future__ import annotations

import importlib.metadata
import re

_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?", re.ASCII)
_PLACEHOLDER = "UNKNOWN"
"""The name that setuptools writes for a package whose configuration gives none."""


def name_or_folder(distribution: importlib.metadata.Distribution) -> str:
    """The distribution's name, or the folder of its metadata when they give no valid one."""
    try:
        name = distribution.metadata["Name"]
    except Exception:  # a distribution without METADATA: what is raised depends on the Python version
        name = None
    if name and _NAME.fullmatch(name) and name != _PLACEHOLDER:
        return name
    # The standard library tells the folder of distributions on disk, the only ones that can be deleted, here alone.
    return str(getattr(distribution, "_path", "(a distribution without a name)"))


def update_advice(distribution: str, command: str = "pip install --upgrade") -> str:
    """What a user does to get another copy of a package.

    Args:
        distribution: see ``name_or_folder``.
        command: what to call with the name, where there is one.
    """
    if _NAME.fullmatch(distribution):
        return f"{command} {distribution}"
    return (
        f"its metadata, {distribution}, give no package name that pip could look up; delete that folder and install "
        "the package again from where it came from"
    )
