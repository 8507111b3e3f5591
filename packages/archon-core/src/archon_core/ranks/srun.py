"""The rank environment of processes that ``srun`` starts, from SLURM's variables. Pure; imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

from archon_core.errors import ConfigError

FIRST_PORT, N_PORTS = 20000, 12000
"""Ports for the rendezvous, below Linux' range of client ports. Two steps on one machine get different ones."""

_NEEDED = ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
"""What only ``srun`` sets: a batch script has no step of its own."""


def srun_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of ``archon_core.ranks.environment`` for a task of ``srun``; empty for other processes.

    The rendezvous is on the machine of the first task, under its name in SLURM, unless ``MASTER_ADDR`` or
    ``MASTER_PORT`` is set.

    Raises:
        ConfigError: the variables contradict each other.
    """
    if "RANK" in environment or any(name not in environment for name in _NEEDED):
        return {}
    try:
        tasks = _tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
        step = 31 * int(environment["SLURM_JOB_ID"]) + int(environment["SLURM_STEP_ID"])
        return {
            "RANK": str(int(environment["SLURM_PROCID"])),
            "WORLD_SIZE": str(int(environment["SLURM_STEP_NUM_TASKS"])),
            "LOCAL_RANK": str(int(environment["SLURM_LOCALID"])),
            "LOCAL_WORLD_SIZE": str(tasks[int(environment["SLURM_NODEID"])]),
            "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": environment.get("MASTER_PORT") or str(FIRST_PORT + step % N_PORTS),
        }
    except (KeyError, ValueError, IndexError) as error:
        found = {name: value for name, value in environment.items() if name.startswith("SLURM_STEP_")}
        raise ConfigError(
            f"environment: cannot read SLURM's variables ({error!r}): found {found}; start the ranks with srun, or "
            "with srun torchrun"
        ) from error


def _tasks_per_node(text: str) -> list[int]:
    """Tasks of each node.

    >>> _tasks_per_node("8(x2),4")
    [8, 8, 4]
    """
    found: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item)
        if match is None:
            raise ValueError(text)
        found += [int(match.group(1))] * int(match.group(2) or 1)
    return found


def _first_host(text: str) -> str:
    """The first host of a list.

    >>> [_first_host(text) for text in ("n[08-11,20],m1", "gpu-1-[3,5]-x", "login")]
    ['n08', 'gpu-1-3-x', 'login']
    """
    match = re.match(r"(?:[^\[\],]|\[[^\[\]]*\])+", text)
    if match is None:
        raise ValueError(text)
    return re.sub(r"\[(\d+)[^\[\]]*\]", r"\1", match.group())
