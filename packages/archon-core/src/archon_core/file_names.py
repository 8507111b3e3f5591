"""Names of files that other files contain, such as an index of weights: they must not lead out of their folder."""

from __future__ import annotations


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is the name of an entry of a folder, on every system: no path, not absolute, not ``..``."""
    return bool(name) and name not in (".", "..") and not any(sign in name for sign in "/\\:\0")
