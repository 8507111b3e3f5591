"""Names of installed packages for pip, and advice for packages without such a name.

A distribution with damaged metadata has no name that pip accepts. Listings, messages and ``ARCHON_DISABLE_PLUGINS``
then use the folder of its metadata instead.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re

_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?", re.ASCII)
_PLACEHOLDER = "UNKNOWN"
"""The name that setuptools writes for a package whose configuration gives none."""


@functools.lru_cache(maxsize=256)  # reading a name parses the whole METADATA
def name_or_folder(distribution: importlib.metadata.Distribution) -> str:
    """The distribution's name, or the folder of its metadata when they give no valid one."""
    try:
        name = distribution.metadata["Name"]
    except Exception:  # a distribution without METADATA raises different errors in different Python versions
        name = None
    if name and _NAME.fullmatch(name) and name != _PLACEHOLDER:
        return name
    # Private, but the only attribute with the folder; distributions that are not on disk lack it.
    return str(getattr(distribution, "_path", "(a distribution without a name)"))


def update_advice(distribution: str, command: str = "pip install --upgrade") -> str:
    """How a user replaces the installed copy of a package.

    Args:
        distribution: see ``name_or_folder``.
        command: the command to call with the package's name, if it has one.
    """
    if _NAME.fullmatch(distribution):
        return f"{command} {distribution}"
    return (
        f"its metadata, {distribution}, give no package name that pip could look up; delete that folder and install "
        "the package again from its original source"
    )
