"""Processor time of a process and its descendants, by what they do, from ``/proc``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def seconds_by_role(root: int, roles: Mapping[str, str], others: str) -> dict[str, float]:
    """Processor seconds so far.

    Args:
        root: process id of the ancestor.
        roles: text in a command line -> role.
        others: role of the other processes.
    """
    found = {int(name): _read(Path("/proc", name)) for name in os.listdir("/proc") if name.isdigit()}
    known = {pid: one for pid, one in found.items() if one is not None}
    seconds: dict[str, float] = {}
    for pid, (_, spent, command) in known.items():
        if _descends(pid, root, known):
            role = next((role for text, role in roles.items() if text in command), others)
            seconds[role] = seconds.get(role, 0.0) + spent
    return seconds


def _descends(pid: int, root: int, known: Mapping[int, tuple[int, float, str]]) -> bool:
    while pid != root:
        if pid not in known:
            return False
        pid = known[pid][0]
    return True


def _read(folder: Path) -> tuple[int, float, str] | None:
    """Parent, processor seconds and command line; ``None`` if the process has ended."""
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return None
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS, command
