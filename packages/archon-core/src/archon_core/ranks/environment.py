"""The rank environment: the environment variables of ``torchrun``, which Archon's launcher sets, too.

Imports no torch, so that a command knows whether it is a rank before heavy imports.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from archon_core.errors import ConfigError

LAUNCHER_PID = "ARCHON_LAUNCHER_PID"
"""Environment variable with the process id of the launcher of Archon that started this rank as its child."""


@dataclass(frozen=True)
class RankEnvironment:
    """One process of a launched run.

    Attributes:
        rank: of this process, from 0, among the processes of all roles.
        world_size: number of processes.
        local_rank: index of this process on its machine, and of its device.
        local_world_size: number of processes on its machine. Roles with their own ranks count together: they share the
            machine's devices.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def rank_environment(environment: Mapping[str, str] = os.environ) -> RankEnvironment | None:
    """The rank environment; ``None`` for a process without a launcher.

    Raises:
        ConfigError: only some of the variables are set, or they contradict each other.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    missing = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    found = {name: environment[name] for name in names if name in environment}
    try:
        if missing:
            raise ValueError(f"{', '.join(missing)} missing")
        place = RankEnvironment(*(int(environment[name]) for name in names))
        if not (0 <= place.rank < place.world_size and 0 <= place.local_rank < place.local_world_size):
            raise ValueError("a rank is outside its world")
    except ValueError as error:
        listed = " ".join(f"{name}={value}" for name, value in found.items())
        raise ConfigError(
            f"environment: found {listed} ({error}); a launcher such as torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, "
            "LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT together; start with it, or unset them to run one process"
        ) from error
    return place
