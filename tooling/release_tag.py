"""Tags of releases, ``<distribution>-v<version>``: every package has its own version, so a tag names both."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from packaging.version import InvalidVersion, Version

from release_problem import ReleaseError


def parse_tag(tag: str, names: Collection[str]) -> tuple[str, Version]:
    """The distribution and the version of a tag.

    Args:
        tag: such as ``archon-moe-v0.2.0``.
        names: the distributions that there are.

    Raises:
        ReleaseError: it has another form, or names no package of ours.
    """
    match = re.fullmatch(r"(?P<name>.+)-v(?P<version>\d.*)", tag)
    if match is None:
        raise ReleaseError(f"tag {tag!r}: found no <distribution>-v<version>; write one such as archon-core-v0.2.0")
    name = match["name"]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ReleaseError(f"tag {tag!r}: found no package {name!r} in packages/{meant} Allowed: {', '.join(names)}")
    try:
        version = Version(match["version"])
    except InvalidVersion as error:
        raise ReleaseError(f"tag {tag!r}: {match['version']!r} is no version; write one such as 0.2.0") from error
    if str(version) != match["version"] or version.local or len(version.release) != 3:
        proper = ".".join(map(str, (*version.release, 0, 0)[:3]))
        raise ReleaseError(
            f"tag {tag!r}: found version {match['version']!r}; allowed are three numbers, after which a1, b1 or rc1 "
            f"may stand: {name}-v{proper}"
        )
    return name, version
