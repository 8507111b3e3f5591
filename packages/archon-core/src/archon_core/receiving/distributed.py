"""The receiving end of the transport ``distributed``: the second member of a group of two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from archon_core.contracts.serving import WeightStore
from archon_core.errors import ServerError
from archon_core.receiving.checksum import bytes_of, checksum_of
from archon_core.receiving.elastic_group import RECEIVER, join_group, receive
from archon_core.receiving.shared_memory import view_tensor
from archon_core.serving.update import BucketNotice, UpdatePlan


class DistributedReceiver:
    """Implements ``contracts.serving.WeightReceiver``.

    Args:
        timeout: upper bound of every wait for the trainer, in seconds.
    """

    def __init__(self, *, timeout: float) -> None:
        self._timeout = timeout
        self._group: Any = None
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def begin(self, plan: UpdatePlan) -> None:
        """Join the group of this server and version."""
        setup = plan.setup
        host, port, prefix, limit = (setup.get(name) for name in ("host", "port", "prefix", "timeout"))
        if not (isinstance(host, str) and isinstance(port, int) and isinstance(prefix, str)):
            raise ServerError(f"transport distributed: found setup {dict(setup)}; expected host, port and prefix")
        self._group = join_group(host, port, prefix, RECEIVER, timeout=self._bounded(limit))

    def receive(self, notice: BucketNotice, store: WeightStore) -> Mapping[str, str]:
        """Receive the bytes of a bucket."""
        if self._group is None:
            raise ServerError(f"bucket {notice.index}: found no group; the update must begin first")
        if self._buffer.numel() < notice.n_bytes:
            self._buffer = torch.empty(notice.n_bytes, dtype=torch.uint8)
        content = self._buffer[: notice.n_bytes]
        checksums: dict[str, str] = {}
        coming = list(reversed(notice.sent))

        def take(arrived: int) -> None:
            """Store the tensors whose bytes have all arrived, while the next messages arrive."""
            while coming and coming[-1][1] + coming[-1][0].n_bytes <= arrived:
                entry, offset = coming.pop()
                values = view_tensor(content, entry, offset)
                checksums[entry.name] = checksum_of(bytes_of(values))
                store.put(entry.name, values)

        take(0)  # tensors without elements
        if notice.n_bytes:
            for arrived in receive(self._group, content, timeout=self._bounded(notice.place.get("timeout"))):
                take(arrived)
        return checksums

    def end(self) -> None:
        """Leave the group, which closes its sockets."""
        self._group = None

    def _bounded(self, limit: Any) -> float:
        return min(float(limit), self._timeout) if isinstance(limit, int | float) else self._timeout
