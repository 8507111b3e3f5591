"""What ranks on the machines of a run get from the launcher, and whether the machines fit together. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from archon_core.contracts.scheduling import SchedulingSpec
from archon_core.errors import ConfigError
from archon_core.ranks.error_file import ERROR_FILE
from archon_ray.machine import Place
from archon_ray.watching import error_path


def rank_environment(rank: int, here: Sequence[int], world: int, address: str, port: int, logs: Path) -> dict[str, str]:
    """The environment by which a rank finds its place.

    Args:
        rank: the rank.
        here: the ranks of its machine.
        world: number of all ranks.
        address: of the first rank's machine.
        port: where the ranks meet.
        logs: folder of the attempt.
    """
    found = {
        "RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_RANK": here.index(rank),
        "LOCAL_WORLD_SIZE": len(here),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        ERROR_FILE: error_path(logs, rank),
    }
    return {name: str(value) for name, value in found.items()}


def check_places(places: Sequence[Place]) -> None:
    """Raise ConfigError if a machine does not see the run's folders, or has other versions than the first one."""
    first = places[0]
    for place in places:
        if place.missing:
            raise ConfigError(
                f"cluster.fileroot: {place.host} ({place.address}) does not see {place.missing[0]}; the run folder and "
                "the working directory must be on a file system that all machines of the run share"
            )
        for name, version in place.versions.items():
            if version != first.versions[name]:
                raise ConfigError(
                    f"scheduler.type=ray: found {name} {version or 'missing'} on {place.host} and "
                    f"{first.versions[name] or 'missing'} on {first.host}; install the same versions on all machines"
                )


PASSED_ON = ("PYTHONPATH", "ARCHON_DISABLE_PLUGINS", "ARCHON_SERVER_TOKEN", "ARCHON_STRICT_PLUGINS", "ARCHON_TRACEBACK")
"""Variables of the launcher that all processes of the run get. Others come from the environment of the Ray node."""


def passed_on(own: Mapping[str, str]) -> dict[str, str]:
    """The variables of the launcher's environment that ranks and servers get.

    >>> passed_on({"PYTHONPATH": "/shared/plugins", "HOME": "/root"})
    {'PYTHONPATH': '/shared/plugins'}
    """
    return {name: own[name] for name in PASSED_ON if name in own}


def threads(spec: SchedulingSpec, own: Mapping[str, str]) -> dict[str, str]:
    """The number of threads of each rank, if the user has chosen one; otherwise ranks share their machine's cores.

    Args:
        spec: of the ranks.
        own: the launcher's environment.

    >>> threads(SchedulingSpec(cpu=4), {"OMP_NUM_THREADS": "2"})
    {'OMP_NUM_THREADS': '2'}
    >>> threads(SchedulingSpec(cpu=4), {})
    {'OMP_NUM_THREADS': '4'}
    """
    name = "OMP_NUM_THREADS"
    if name in spec.env_vars:
        return {name: spec.env_vars[name]}
    if name in own:
        return {name: own[name]}
    return {name: str(spec.cpu)} if spec.cpu else {}
