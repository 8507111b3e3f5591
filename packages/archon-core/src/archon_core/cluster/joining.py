"""Joins all ranks; if some do not arrive, rank 0 knows which."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from archon_core.cluster.naming import name_ranks, spans
from archon_core.errors import ConfigError
from archon_core.ranks.environment import RankEnvironment
from archon_core.ranks.network_interface import use_interface
from archon_core.ranks.ranks import Ranks

POLL_SECONDS = 0.1

AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""Set by torchrun if its own process serves the store, rather than rank 0."""


def has_device(place: RankEnvironment) -> bool:
    """Whether each rank of this machine has a GPU."""
    import torch

    return torch.cuda.is_available() and torch.cuda.device_count() >= place.local_world_size


@contextmanager
def joined(place: RankEnvironment, *, timeout: float) -> Iterator[Ranks]:
    """All ranks, until the block ends. The environment has the address of the rendezvous.

    Args:
        place: this rank.
        timeout: seconds to wait for the others, and limit of every exchange with them.

    Raises:
        ConfigError: the rendezvous cannot be reached, or ranks are missing, which are named.
    """
    import torch
    import torch.distributed as dist

    backends = "gloo"
    if has_device(place):
        torch.cuda.set_device(place.local_rank)
        backends = "cpu:gloo,cuda:nccl"
    use_interface(place, nccl=has_device(place), patience=timeout)
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        store = dist.TCPStore(
            host,
            int(port),
            is_master=place.rank == 0 and os.environ.get(AGENT_STORE) != "True",
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"MASTER_ADDR, MASTER_PORT: rank {place.rank} ({socket.gethostname()}) cannot reach the store of rank 0 at "
            f"{host}:{port} within {timeout:g} s: {str(error).splitlines()[0]}; check that rank 0 runs, and that no "
            "firewall blocks the port"
        ) from error
    arrivals = dist.PrefixStore(f"archon-doctor/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    wait_for_ranks(arrivals, place, timeout=timeout)
    dist.init_process_group(
        backends, store=arrivals, rank=place.rank, world_size=place.world_size, timeout=timedelta(seconds=timeout)
    )
    yield Ranks.of_process_group()
    dist.destroy_process_group()  # only after success: after an error, others may wait in a collective


def wait_for_ranks(store: Any, place: RankEnvironment, *, timeout: float) -> None:
    """Tell the others that this rank is here, and wait until all are.

    Raises:
        ConfigError: some did not arrive within ``timeout`` seconds; or the store is gone, whose process has given up on
            them.
    """
    try:
        _wait_for_ranks(store, place, timeout=timeout)
    except RuntimeError as error:
        raise ConfigError(
            f"ranks: rank {place.rank} ({socket.gethostname()}) lost the store of rank 0 while it waited for other "
            f"ranks: {str(error).splitlines()[0]}; read the output of rank 0, which names the missing ones"
        ) from error


def _wait_for_ranks(store: Any, place: RankEnvironment, *, timeout: float) -> None:
    store.set(f"host/{place.rank}", socket.gethostname())
    end = time.monotonic() + timeout
    missing = list(range(place.world_size))
    while True:
        missing = [rank for rank in missing if not store.check([f"host/{rank}"])]
        if not missing:
            return
        if time.monotonic() > end:
            break
        time.sleep(POLL_SECONDS)
    present = [rank for rank in range(place.world_size) if rank not in missing]
    hosts = [store.get(f"host/{rank}").decode() if rank in present else "" for rank in range(place.world_size)]
    raise ConfigError(
        f"ranks: {spans(missing)} of {place.world_size} did not arrive within {timeout:g} s; found "
        f"{name_ranks(present, hosts)}; read the output of the missing ones, check that they reach this address, or "
        "raise --timeout"
    )
