"""Process groups of two, beside all others: a trainer and one server, for one version.

Public names of torch only, and no global state. Measured with torch 2.13 on gloo: a group takes 5 to 25 ms to build. If
a member never arrives, the other gets an error after the time limit, which names the missing key. In a larger group, a
killed member makes the healthy ones wait as well, and a stopped one makes the sender fail although others got the data.
So every server has a separate group. A group is never repaired: the next version builds another under a new prefix.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from archon_core.errors import ServerError

SENDER, RECEIVER = 0, 1

MESSAGE_BYTES = 2**24
"""Size of a message: large enough for gloo's full speed, small enough to work on one while others arrive."""


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


def send(group: Any, content: Tensor, *, timeout: float) -> None:
    """Send bytes, uint8 [n], to the receiver, as messages of ``MESSAGE_BYTES``. Success proves nothing about the
    receiver, nor does failure.

    Raises:
        ServerError: torch reports a failure.
    """
    with _described("send", timeout):
        works = [group.send([message], RECEIVER, tag) for tag, message in enumerate(content.split(MESSAGE_BYTES))]
        _wait_for_all(works, timeout)


def receive(group: Any, content: Tensor, *, timeout: float) -> Iterator[int]:
    """Receive bytes, uint8 [n]. Yields the number of bytes that have arrived, after each message, so that the caller
    works on these while the next ones arrive.

    Raises:
        ServerError: the sender is gone, or not all arrived within ``timeout`` seconds.
    """
    end = time.monotonic() + timeout
    with _described("receive", timeout):
        works = [group.recv([message], SENDER, tag) for tag, message in enumerate(content.split(MESSAGE_BYTES))]
    for number, work in enumerate(works, start=1):
        with _described("receive", timeout):
            work.wait(timedelta(seconds=max(0.001, end - time.monotonic())))
        yield min(number * MESSAGE_BYTES, content.numel())


def _wait_for_all(works: list[Any], timeout: float) -> None:
    end = time.monotonic() + timeout
    for work in works:
        work.wait(timedelta(seconds=max(0.001, end - time.monotonic())))


@contextmanager
def _described(verb: str, timeout: float) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ServerError(f"cannot {verb} weights within {timeout:.1f} s: {_first(error)}") from error


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0]
