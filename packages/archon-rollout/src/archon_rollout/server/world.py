"""The process group of a server with several ranks, all on this machine.

The first rank is the process that the user started. It starts the others, which end with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from archon_core.errors import ConfigError
from archon_core.ranks.addresses import interface_of
from archon_core.ranks.network_interface import CHOSEN, GLOO, interface_of_user
from archon_core.ranks.ranks import Ranks
from archon_rollout.server.environment import PARENT

LOCALHOST = "127.0.0.1"

TIMEOUT = timedelta(minutes=5)
"""Time limit of collectives. An idle server shares an empty list of commands every minute."""

STOP_SECONDS = 10.0


def join(store: dist.Store, rank: int, size: int) -> Ranks:
    """Join the ranks of a server.

    Raises:
        ConfigError: there are fewer CUDA devices than ranks.
    """
    backends = "gloo"
    if torch.cuda.is_available():
        if torch.cuda.device_count() < size:
            raise ConfigError(
                f"--layout: found {torch.cuda.device_count()} CUDA devices for {size} ranks; choose a smaller t, or "
                "set CUDA_VISIBLE_DEVICES= to run on the CPU"
            )
        torch.cuda.set_device(rank)
        backends = "cpu:gloo,cuda:nccl"
    # All ranks are on this machine; the interface of its host name may be down or have no address.
    if interface_of_user() is None and (loopback := interface_of(LOCALHOST)) is not None:
        os.environ |= {GLOO: loopback, CHOSEN: loopback}
    dist.init_process_group(backends, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    return Ranks.of_process_group()


def start_follower(rank: int, size: int, port: int, options: str) -> subprocess.Popen[str]:
    """Start one of the other ranks. Control calls go to its standard input, answers come from its standard output."""
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        PARENT: str(os.getpid()),
    }
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "archon_rollout.server.follower", str(port), options],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the first rank
    )


def end_followers(followers: list[subprocess.Popen[str]]) -> None:
    """Wait for the other ranks, and kill those that stay."""
    for follower in followers:
        try:
            follower.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            follower.kill()
            follower.wait()
