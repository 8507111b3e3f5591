"""Process groups of two, beside all others: a trainer and one server, for one version.

Public names of torch only, and no global state. Measured with torch 2.13 on gloo: a group takes 5 to 25 ms to build. If
a member never arrives, the other gets an error after the time limit, which names the missing key. In a larger group, a
killed member makes the healthy ones wait as well, and a stopped one makes the sender fail although others got the data.
So every server has a separate group. A group is never repaired: the next version builds another under a new prefix.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from archon_core.errors import ServerError

SENDER, RECEIVER = 0, 1


def join_group(host: str, port: int, prefix: str, rank: int, *, timeout: float) -> Any:
    """Build a gloo group of two, as ``SENDER`` or ``RECEIVER``. Waits for the other member.

    Raises:
        ServerError: the store cannot be reached, or the other member does not arrive within ``timeout`` seconds.
    """
    limit = timedelta(seconds=timeout)
    try:
        store = dist.TCPStore(host, port, is_master=False, timeout=limit, wait_for_workers=False)
        return dist.ProcessGroupGloo(dist.PrefixStore(prefix, store), rank, 2, limit)
    except RuntimeError as error:
        raise ServerError(
            f"group {prefix}: rank {rank} of 2 could not join over {host}:{port} within {timeout:.1f} s: "
            f"{_first(error)}; check that the server reaches this host and port"
        ) from error


def send(group: Any, content: Tensor, tag: int, *, timeout: float) -> None:
    """Send bytes, uint8 [n], to the receiver. Success proves nothing about the receiver, nor does failure.

    Raises:
        ServerError: torch reports a failure.
    """
    _finish(group.send([content], RECEIVER, tag), timeout, "send")


def receive(group: Any, content: Tensor, tag: int, *, timeout: float) -> None:
    """Receive bytes, uint8 [n].

    Raises:
        ServerError: the sender is gone, or nothing arrived within ``timeout`` seconds.
    """
    _finish(group.recv([content], SENDER, tag), timeout, "receive")


def _finish(work: Any, timeout: float, verb: str) -> None:
    try:
        work.wait(timedelta(seconds=timeout))
    except RuntimeError as error:
        raise ServerError(f"cannot {verb} weights within {timeout:.1f} s: {_first(error)}") from error


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0]
