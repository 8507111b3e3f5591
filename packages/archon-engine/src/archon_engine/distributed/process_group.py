"""Sets up and tears down torch.distributed in a launched process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError
from archon_core.ranks.environment import RankEnvironment
from archon_core.ranks.network_interface import use_interface
from archon_core.ranks.ranks import Ranks
from archon_core.ranks.role_link import RoleLink
from archon_core.ranks.role_ranks import RoleRanks
from archon_engine.distributed.role_channels import join_role, link_roles

DEFAULT_TIMEOUT = timedelta(minutes=30)
"""Time limit of collectives. It is long because a rank may wait for another that generates or writes a checkpoint."""


def device_backends() -> str:
    """The backends: Gloo for CPU tensors and Python values; NCCL for CUDA tensors, if there is a CUDA device."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def ensure_single_process_group() -> None:
    """Start a process group with this process only, if there is no group. Even a mesh of one device needs a group."""
    if not dist.is_initialized():
        dist.init_process_group(device_backends(), store=dist.HashStore(), rank=0, world_size=1)


@dataclass(frozen=True)
class JoinedRanks:
    """The other processes of a run, as one of them sees them.

    Attributes:
        ranks: those of the same role, which are the default group.
        links: to the ranks of other roles; empty if all roles share the actor's ranks.
    """

    ranks: Ranks
    links: Mapping[str, RoleLink] = field(default_factory=dict)


@contextmanager
def process_group(
    place: RankEnvironment,
    trainer: Sequence[RoleRanks] = (),
    *,
    timeout: timedelta = DEFAULT_TIMEOUT,
    decisions: list[Decision] | None = None,
) -> Iterator[JoinedRanks]:
    """Join the other processes of a launched run until the block ends.

    The address comes from the environment, as ``torchrun`` sets it, and determines the network interface.

    Args:
        place: this rank.
        trainer: the ranks by role, if some roles have their own ranks.
        timeout: time limit of collectives.
        decisions: the choice of the network interface is added to it.

    Raises:
        ConfigError: there are fewer CUDA devices than processes on this machine, or the address cannot be reached.
    """
    if torch.cuda.is_available():
        devices = torch.cuda.device_count()
        if devices < place.local_world_size:
            raise ConfigError(
                f"devices: found {devices} CUDA devices for {place.local_world_size} ranks on this machine; every rank "
                "needs a device; choose a smaller layout, or set CUDA_VISIBLE_DEVICES= to run on the CPU"
            )
        torch.cuda.set_device(place.local_rank)
    chosen = use_interface(place, nccl=torch.cuda.is_available())
    if decisions is not None:
        decisions.extend(chosen)
    links: Mapping[str, RoleLink] = {}
    if len(trainer) > 1:
        store, *_ = next(dist.rendezvous("env://", place.rank, place.world_size, timeout=timeout))
        join_role(store, place.rank, trainer, device_backends(), timeout)
        links = link_roles(store, place.rank, trainer)
    else:
        dist.init_process_group(device_backends(), timeout=timeout)
    yield JoinedRanks(Ranks.of_process_group(), links)
    # Only after success. After an error, peers may wait in a collective that this process never enters, and destroying
    # the group would wait for them.
    dist.destroy_process_group()
