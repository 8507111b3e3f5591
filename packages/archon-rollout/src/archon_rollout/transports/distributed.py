"""The transport ``distributed``: over the network, one gloo group of two per server and version, in parallel threads.

The time limit of a transfer is ``max(5 s, 4 x the measured time)``, never torch's 30 minutes. That is how long a
stopped server delays the others.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.serving import TransportContext, WeightBucket
from archon_core.errors import ServerError
from archon_core.receiving.elastic_group import SENDER, join_group, send
from archon_core.receiving.shared_memory import view_tensor
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.record import ServerRecord
from archon_core.serving.update import BucketNotice, Receipt
from archon_engine.compat import copy_all
from archon_rollout.publication.calls import MAX_CALLS
from archon_rollout.transports.notifying import NotifyingTransport
from archon_rollout.transports.store_process import StoreProcess

LEAST_SECONDS = 5.0
SLOWER = 4.0
"""A transfer fails after the larger of ``LEAST_SECONDS`` and ``SLOWER`` times what the last ones took per byte."""


class DistributedTransport(NotifyingTransport):
    """Implements ``contracts.serving.WeightTransport``."""

    name = "distributed"

    def __init__(self, context: TransportContext) -> None:
        super().__init__(context)
        self._store = StoreProcess()
        self._partners = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="distributed-partner")
        self._epoch = 0
        self._setup_of: dict[str, Mapping[str, Any]] = {}
        self._groups: dict[str, Any] = {}
        self._content = torch.empty(0, dtype=torch.uint8)
        self._measured_bytes = 0
        self._seconds_per_byte = 0.0
        self._store.start()

    def commit(self, version: int) -> None:
        """Leave the groups of the version."""
        super().commit(version)
        self._groups = {}

    def abort(self) -> None:
        """Leave all groups."""
        super().abort()
        self._groups = {}

    def close(self) -> None:
        """End the store's process."""
        super().close()
        self._partners.shutdown(wait=False)
        self._store.close()

    def _setups(self, manifest: WeightManifest) -> Mapping[str, Mapping[str, Any]]:
        self._epoch += 1
        self._groups = {}
        port = self._store.port
        self._setup_of = {
            server.incarnation: {
                "host": address_towards(server.address),
                "port": port,
                "prefix": f"weights/{self._context.run}/{self._epoch}/{server.incarnation}",
                "timeout": self._context.timeout,
            }
            for server in self._servers
        }
        return self._setup_of

    def _beginning(self, server: ServerRecord, call: Callable[[], None]) -> None:
        setup = self._setup_of[server.incarnation]
        # Each end waits for the other, so the call and this end's part run together.
        joining = self._partners.submit(
            join_group, setup["host"], setup["port"], setup["prefix"], SENDER, timeout=self._context.timeout
        )
        call()
        self._groups[server.incarnation] = joining.result()

    def _place(self, bucket: WeightBucket, notice: BucketNotice) -> Mapping[str, Any]:
        if bucket.content is not None and not notice.kept:
            self._content = bucket.content
        else:
            self._content = torch.empty(notice.n_bytes, dtype=torch.uint8)
            copy_all(
                [view_tensor(self._content, entry, offset) for entry, offset in notice.sent],
                [bucket.tensors[entry.name] for entry, _ in notice.sent],
            )
        return {"timeout": self._time_limit(notice)}

    def _sending(self, server: ServerRecord, notice: BucketNotice, call: Callable[[], Receipt]) -> Receipt:
        if not notice.n_bytes:
            return call()
        group, limit = self._groups[server.incarnation], self._time_limit(notice)
        start = time.perf_counter()
        sending = self._partners.submit(_send_quietly, group, self._content, limit)
        try:
            receipt = call()
        except ServerError as error:
            reason = sending.result() if sending.done() else ""
            raise type(error)(f"{error}" + (f"; {reason}" if reason else "")) from error
        # The receipt has the checksums of what arrived; this end's own impression adds nothing.
        sending.result()
        if notice.n_bytes >= self._measured_bytes:  # small buckets measure latency
            self._measured_bytes = notice.n_bytes
            self._seconds_per_byte = (time.perf_counter() - start) / notice.n_bytes
        return receipt

    def _time_limit(self, notice: BucketNotice) -> float:
        if not self._seconds_per_byte:
            return self._context.timeout
        return min(self._context.timeout, max(LEAST_SECONDS, SLOWER * self._seconds_per_byte * notice.n_bytes))


def address_towards(address: str) -> str:
    """The address of this host as the host of ``address`` reaches it.

    Raises:
        ServerError: no network leads there.
    """
    host, _, port = address.rpartition(":")
    try:
        family, _, _, _, target = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # sends nothing
            probe.connect(target)
            return probe.getsockname()[0]
    except OSError as error:
        raise ServerError(f"server {address}: no network leads there: {error}; check its address") from error


def _send_quietly(group: Any, content: Tensor, limit: float) -> str:
    """Send; returns why it failed."""
    try:
        send(group, content, timeout=limit)
    except ServerError as error:
        return str(error)
    return ""
