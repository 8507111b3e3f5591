"""Checks names of files that a checkpoint refers to: none may lead out of the folder."""

from __future__ import annotations


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is a plain file name on every system: no path, not absolute, not ``..``."""
    return bool(name) and name not in (".", "..") and not any(sign in name for sign in "/\\:\0")
