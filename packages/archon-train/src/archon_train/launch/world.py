"""The number of processes of a run: required, started, and the command to start them. Imports no torch."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from archon_core.errors import ConfigError
from archon_core.ranks.environment import RankEnvironment
from archon_core.ranks.role_ranks import ACTOR
from archon_train.cluster import EngineShare, role_ranks

if TYPE_CHECKING:
    from archon_train.experiment import ClusterConfig
    from archon_train.process_plan import ProcessPlan


def ranks_needed(shares: Sequence[EngineShare]) -> int:
    """The number of training processes: the actor's, which other models may share, and those of separated roles."""
    return sum(part.size for part in role_ranks(shares))


def check_started(place: RankEnvironment, shares: Sequence[EngineShare], arguments: Sequence[str]) -> None:
    """Check that a launcher started as many processes as the layouts need.

    Args:
        place: the rank environment that the launcher set.
        shares: of the run's engines.
        arguments: of ``archon``, such as ``["train", "run.yaml"]``, to show how to start it.

    Raises:
        ConfigError: the numbers differ.
    """
    needed = ranks_needed(shares)
    if place.world_size != needed:
        nodes = max(1, place.world_size // place.local_world_size)
        separated = len(role_ranks(shares)) > 1
        other = "" if separated else f"\nor set actor.backend to a layout of {place.world_size}"
        raise ConfigError(
            f"launcher: found {place.world_size} processes (WORLD_SIZE); {_need(shares)}; start "
            f"{needed} processes:\n  {torchrun_command(arguments, needed, nodes if needed % nodes == 0 else 1)}{other}"
        )


def _need(shares: Sequence[EngineShare]) -> str:
    """Which engines need how many ranks, in words."""
    layouts = {share.role: share.layout for share in shares}
    parts = role_ranks(shares)
    if len(parts) == 1:
        return f"actor.backend={layouts[ACTOR]} needs {parts[0].size}"
    named = " and ".join(f"{part.role}.backend={layouts[part.role]}" for part in parts)
    return f"{named} need {' + '.join(str(part.size) for part in parts)} = {ranks_needed(shares)}"


def explain_machines(shares: Sequence[EngineShare], cluster: ClusterConfig, arguments: Sequence[str]) -> str | None:
    """The command to run on each machine if the run needs several; else ``None``."""
    needed = ranks_needed(shares)
    if needed <= cluster.n_gpus_per_node or cluster.n_gpus_per_node == 0:
        return None
    nodes, rest = divmod(needed, cluster.n_gpus_per_node)
    sizes = [cluster.n_gpus_per_node] * nodes + ([rest] if rest else [])
    return (
        f"scheduler.type: found local, which starts processes on this machine only; {_need(shares)} "
        f"on {len(sizes)} machines (cluster.n_gpus_per_node={cluster.n_gpus_per_node}); {_commands(arguments, sizes)}\n"
        f"or set cluster.n_gpus_per_node={needed} to run all on this machine, which a CPU can"
    )


def _commands(arguments: Sequence[str], sizes: Sequence[int]) -> str:
    """The commands to run on the machines, which start ``sizes`` ranks."""
    if len(set(sizes)) == 1:
        command = torchrun_command(arguments, sum(sizes), len(sizes))
        return f"run this on each machine, with HOST as the address of one of them:\n  {command}"
    lines = []
    for node, size in enumerate(sizes):
        meeting = [f"--nnodes={len(sizes)}", f"--node-rank={node}", "--master-addr=HOST", "--master-port=29500"]
        command = ["torchrun", *meeting, f"--nproc-per-node={size}", "-m", "archon_core.cli", *arguments]
        lines.append(f"  {shlex.join(command)}")
    return "run one of these on each machine, with HOST as the address of the first:\n" + "\n".join(lines)


def explain_servers_elsewhere(plan: ProcessPlan) -> str | None:
    """What to do about servers for which the first machine has no devices; ``None`` without any."""
    servers = [part for part in plan if part.layout.kind == "inference"]
    n_ranks = sum(process.node == 0 for part in plan if part not in servers for process in part.processes)
    needed = n_ranks + sum(len(process.devices) for part in servers for process in part.processes)
    if not servers or plan.devices_per_node == 0 or needed <= plan.devices_per_node:
        return None
    places = ", ".join(f"{part.name} on machine {'+'.join(map(str, part.nodes))}" for part in servers)
    options = " and ".join(dict.fromkeys(f"{role}.addresses" for part in servers for role in part.roles))
    return (
        f"scheduler.type: found local, which starts servers on the first machine only; the plan has {places}; start "
        f"them there by hand, and set {options} to their HOST:PORT"
    )


def hide_gpus() -> None:
    """Make this process and its children run on CPUs; has no effect once torch has used a GPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def torchrun_command(arguments: Sequence[str], n_ranks: int, n_nodes: int = 1) -> str:
    """The torchrun command to run on each of ``n_nodes`` machines."""
    rendezvous = [f"--nnodes={n_nodes}", "--rdzv-backend=c10d", "--rdzv-endpoint=HOST:29500", "--rdzv-id=archon"]
    command = ["torchrun", *(rendezvous if n_nodes > 1 else []), f"--nproc-per-node={-(-n_ranks // n_nodes)}"]
    return shlex.join([*command, "-m", "archon_core.cli", *arguments])


def n_computing_at_once(n_ranks: int, processes: ProcessPlan, staleness: int) -> int:
    """Processes that compute at the same time: the trainer's ranks, and the servers if they sample ahead of training.

    Args:
        staleness: ``rollout.max_head_offpolicyness``; with 0, servers work while the trainer waits.
    """
    servers = [part for part in processes if part.layout.kind == "inference" and "rollout" in part.roles]
    return n_ranks + (sum(len(part.processes) for part in servers) if staleness else 0)


def share_cores(n_processes: int) -> None:
    """Give every process its share of this machine's cores, as threads of torch; the user's OMP_NUM_THREADS wins.

    Processes with more threads than cores wait for one another's threads. Has no effect after torch is imported.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_rank(n_processes)))


def threads_per_rank(n_ranks: int) -> int:
    """This machine's cores per process; at least one."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not available on macOS and Windows
        cores = os.cpu_count() or 1
    return max(1, cores // n_ranks)
