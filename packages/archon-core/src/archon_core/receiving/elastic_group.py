"""Process groups beside all others, for one version of weights: of two, or one that broadcasts to all servers.

No global state. On gloo, each member uses its address on the way to the store, so groups with servers on this and on
other machines can exist at once. Measured with torch 2.13 on gloo: a group takes 5 to 25 ms to build. If
a member never arrives, the others get an error after the time limit, which names the missing key. In a group of more
than two, a killed member makes the healthy ones wait for their time limit, and a stopped one makes the sender fail
although others got the data. So on gloo every server has a separate group, and only NCCL broadcasts. A group is never
repaired: the next one is built under a new prefix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from archon_core.errors import ServerError, TransferError
from archon_core.ranks.addresses import address_towards
from archon_core.ranks.network_interface import interface_of_user
from archon_core.receiving.compat import gloo_group_at
from archon_core.serving.wire import fields_of, to_data

SENDER, RECEIVER = 0, 1

MESSAGE_BYTES = 2**21
"""Size of a message: large enough for gloo's full speed, and small enough that a received message is still in the
processor's cache when its checksum is computed. Measured: 2 MiB with checksums is as fast as 64 MiB without."""

CLOSING = "closing"
"""Key in a store that is about to close: members stop waiting for each other."""

POLL_SECONDS = 0.005

WATCHDOG = timedelta(minutes=10)
"""NCCL's watchdog ends the whole process after the time limit of its group. Waits here end long before."""

Group = Any
"""A process group of torch: ``ProcessGroupGloo`` and ``ProcessGroupNCCL`` have no common public class."""


@dataclass(frozen=True)
class GroupSetup:
    """How one member joins a group; travels to servers as JSON.

    Attributes:
        host: host of the store, as this member reaches it.
        port: port of the store.
        prefix: name of the group, never used twice.
        timeout: limit of the wait for the other members, in seconds.
        rank: of this member; the trainer is 0.
        size: number of members.
        backend: ``gloo`` or ``nccl``.
        broadcast: whether the trainer sends by broadcasts.
        message_bytes: size of a message, which both ends must agree on.
        kept: whether the member stays after an update, for the next one: building an NCCL group takes seconds.
    """

    host: str
    port: int
    prefix: str
    timeout: float
    rank: int = RECEIVER
    size: int = 2
    backend: str = "gloo"
    broadcast: bool = False
    message_bytes: int = MESSAGE_BYTES
    kept: bool = False

    def as_data(self) -> dict[str, Any]:
        """The setup as a JSON object."""
        return to_data(self)

    @classmethod
    def from_data(cls, data: Any) -> GroupSetup:
        """Read a received setup. Raises ServerError if it is malformed."""
        words = {"host": str, "prefix": str, "backend": str, "broadcast": bool, "kept": bool}
        numbers = {"port": int, "timeout": float, "rank": int, "size": int, "message_bytes": int}
        setup = cls(**fields_of(cls, data, **words, **numbers))
        if setup.backend not in BACKENDS or setup.message_bytes < 1 or not 0 <= setup.rank < setup.size:
            raise ServerError(
                f"group {setup.prefix}: found backend {setup.backend!r}, rank {setup.rank} of {setup.size}, messages "
                f"of {setup.message_bytes} bytes; allowed backends are {', '.join(BACKENDS)}; check the sender's "
                "version of archon-core"
            )
        return setup


def join_group(
    host: str,
    port: int,
    prefix: str,
    rank: int,
    *,
    timeout: float,
    size: int = 2,
    backend: str = "gloo",
    given_up: Callable[[], bool] = lambda: False,
) -> Group:
    """Build a group as member ``rank``. On gloo, waits for the other members.

    Raises:
        ServerError: the store cannot be reached, or closes; or another member does not arrive within ``timeout``
            seconds, or before ``given_up`` returns true.
    """
    limit = timedelta(seconds=timeout)
    try:
        store = dist.TCPStore(host, port, is_master=False, timeout=limit, wait_for_workers=False)
        if backend == "gloo":
            _meet(store, prefix, rank, size, time.monotonic() + timeout, given_up)
        return BACKENDS[backend](dist.PrefixStore(prefix, store), rank, size, limit, host)
    except (OSError, RuntimeError) as error:
        raise ServerError(
            f"group {prefix}: rank {rank} of {size} could not join over {host}:{port} within {timeout:.1f} s: "
            f"{_first(error)}; check that the server reaches this host and port"
        ) from error


def _meet(store: dist.TCPStore, prefix: str, rank: int, size: int, end: float, given_up: Callable[[], bool]) -> None:
    """Wait until all members are here. Asks again and again: torch's own wait cannot be ended, and reports a store that
    closes in the meantime with a C++ stack trace."""
    store.set(f"{prefix}/arrived/{rank}", "")
    for other in range(size):
        while not store.check([f"{prefix}/arrived/{other}"]):
            if store.check([CLOSING]):
                raise RuntimeError("the trainer has closed the store")
            if given_up():
                raise RuntimeError(f"it gave up before rank {other} arrived")
            if time.monotonic() > end:
                raise RuntimeError(f"rank {other} did not arrive")
            time.sleep(POLL_SECONDS)


def join_as(
    setup: GroupSetup,
    rank: int | None = None,
    *,
    timeout: float | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> Group:
    """``join_group`` by a setup.

    Args:
        setup: of this member, or of another one.
        rank: ``None`` for that of the setup.
        timeout: a lower limit than that of the setup; ``None`` for that of the setup.
        given_up: ends the wait for other members when it returns true.
    """
    limit = setup.timeout if timeout is None else min(setup.timeout, timeout)
    member = setup.rank if rank is None else rank
    return join_group(
        setup.host,
        setup.port,
        setup.prefix,
        member,
        timeout=limit,
        size=setup.size,
        backend=setup.backend,
        given_up=given_up,
    )


def leave(group: Group) -> None:
    """Leave a group. Dropping a gloo group closes its sockets; NCCL also needs to be told not to wait for others."""
    if getattr(dist, "ProcessGroupNCCL", None) is not None and isinstance(group, dist.ProcessGroupNCCL):
        with suppress(RuntimeError):
            group.abort()


class Sending:
    """Bytes on their way to the receiver, or to all; torch's threads send them. Success proves nothing about a
    receiver, nor does failure.

    Args:
        group: the group, as rank ``SENDER``.
        content: uint8 [n].
        timeout: time limit in seconds.
        runs: byte ranges to send; ``None`` for all.
        broadcast: whether the group has many receivers.
        message_bytes: size of a message.

    Raises:
        TransferError: torch reports a failure.
    """

    def __init__(
        self,
        group: Group,
        content: Tensor,
        *,
        timeout: float,
        runs: Sequence[tuple[int, int]] | None = None,
        broadcast: bool = False,
        message_bytes: int = MESSAGE_BYTES,
    ) -> None:
        self._timeout = timeout
        self._end = time.monotonic() + timeout
        with _described("send", timeout):
            self._works = [
                group.broadcast([message], _FROM_SENDER) if broadcast else group.send([message], RECEIVER, tag)
                for tag, (_, message) in enumerate(_messages(content, runs, message_bytes))
            ]

    def wait(self) -> None:
        """Wait until all bytes have left. Raises TransferError as above."""
        with _described("send", self._timeout):
            for work in self._works:
                _wait(work, self._end)


def send(group: Group, content: Tensor, **options: Any) -> None:
    """``Sending`` and ``wait`` in one call."""
    Sending(group, content, **options).wait()


def receive(
    group: Group,
    content: Tensor,
    *,
    timeout: float,
    runs: Sequence[tuple[int, int]] | None = None,
    broadcast: bool = False,
    message_bytes: int = MESSAGE_BYTES,
) -> Iterator[int]:
    """Receive bytes, uint8 [n]; arguments as of ``Sending``. Yields, after each message, the offset up to which all
    bytes have arrived, so that the caller works on these while the next ones arrive.

    Raises:
        TransferError: the sender is gone, or not all arrived within ``timeout`` seconds.
    """
    end = time.monotonic() + timeout
    with _described("receive", timeout):
        works = [
            (
                group.broadcast([message], _FROM_SENDER) if broadcast else group.recv([message], SENDER, tag),
                message_end,
            )
            for tag, (message_end, message) in enumerate(_messages(content, runs, message_bytes))
        ]
    for work, message_end in works:
        with _described("receive", timeout):
            _wait(work, end)
        yield message_end


def _messages(
    content: Tensor, runs: Sequence[tuple[int, int]] | None, message_bytes: int
) -> Iterator[tuple[int, Tensor]]:
    """The messages in order, each with the offset of its end."""
    for start, stop in [(0, content.numel())] if runs is None else runs:
        for at in range(start, stop, message_bytes):
            end = min(at + message_bytes, stop)
            yield end, content[at:end]


def _wait(work: Any, end: float) -> None:
    work.wait(timedelta(seconds=max(0.001, end - time.monotonic())))


def _sender_root() -> dist.BroadcastOptions:
    options = dist.BroadcastOptions()
    options.rootRank = SENDER
    return options


_FROM_SENDER = _sender_root()


def _gloo(store: Any, rank: int, size: int, limit: timedelta, host: str) -> Group:
    if interface_of_user() is not None:  # torch reads it from the environment
        return dist.ProcessGroupGloo(store, rank, size, limit)
    return gloo_group_at(address_towards(host), store, rank, size, limit)


def _nccl(store: Any, rank: int, size: int, limit: timedelta, host: str) -> Group:
    if getattr(dist, "ProcessGroupNCCL", None) is None:
        raise ServerError(
            "weight group: found a torch without NCCL; allowed is rollout.weight_group=gloo, or torch for CUDA"
        )
    return dist.ProcessGroupNCCL(store, rank, size, WATCHDOG)


BACKENDS: Mapping[str, Any] = {"gloo": _gloo, "nccl": _nccl}
"""Backend -> function that builds a group."""


@contextmanager
def _described(verb: str, timeout: float) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise TransferError(f"cannot {verb} weights within {timeout:.1f} s: {_first(error)}") from error


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0]
