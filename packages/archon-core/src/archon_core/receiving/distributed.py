"""The receiving end of the transport ``distributed``: a member of a group of two, or of one that broadcasts.

After a failed broadcast the trainer sends the bucket again, to each server alone: the notice then says which group to
join. So a failed transfer ends the group, but not the update.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from archon_core.contracts.weight_transport import WeightStore
from archon_core.errors import ServerError, TransferError
from archon_core.receiving.checksum import Checksum, blocks, bytes_of
from archon_core.receiving.elastic_group import GroupSetup, join_as, leave, receive
from archon_core.receiving.shared_memory import view_tensor
from archon_core.serving.checksum import PAGE
from archon_core.serving.update import BucketNotice, UpdatePlan


class DistributedReceiver:
    """Implements ``contracts.weight_transport.WeightReceiver``.

    Args:
        timeout: upper bound of every wait for the trainer, in seconds.
    """

    def __init__(self, *, timeout: float) -> None:
        self._timeout = timeout
        self._incarnation = ""
        self._setup: GroupSetup | None = None
        self._group: Any = None
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def begin(self, plan: UpdatePlan) -> None:
        """Join the group of this version, unless that of an earlier one goes on."""
        self._incarnation = plan.incarnation
        setup = GroupSetup.from_data(plan.setup)
        if self._group is None or self._setup != setup:
            self._join(setup)

    def receive(self, notice: BucketNotice, store: WeightStore) -> Mapping[str, str]:
        """Receive the bytes of a bucket.

        Raises:
            TransferError: they did not all arrive. The bucket may be received again.
        """
        groups = notice.place.get("groups")
        if isinstance(groups, Mapping) and self._incarnation in groups:
            self._join(GroupSetup.from_data(groups[self._incarnation]))
        if self._group is None or self._setup is None:
            raise ServerError(f"bucket {notice.index}: found no group; the update must begin first")
        try:
            return self._take(notice, store, self._setup)
        except TransferError:
            self._leave()
            raise

    def end(self) -> None:
        """Leave the group, which closes its sockets, unless it is kept. The buffer, whose memory is warm, stays for the
        next update."""
        if self._setup is not None and not self._setup.kept:
            self._leave()

    def _take(self, notice: BucketNotice, store: WeightStore, setup: GroupSetup) -> Mapping[str, str]:
        content = self._content(notice.n_bytes, "cuda" if setup.backend == "nccl" else "cpu")
        checksums: dict[str, str] = {}
        coming = list(reversed(notice.sent))
        checksum, n_summed = Checksum(), 0

        def take(arrived: int) -> None:
            """Add what has arrived to the checksum of its tensor while it is in the processor's cache, and store the
            tensors that are complete, while the next messages arrive."""
            nonlocal checksum, n_summed
            while coming and coming[-1][1] <= arrived:
                entry, offset = coming[-1]
                values = view_tensor(content, entry, offset)
                end = min(arrived - offset, entry.n_bytes)
                if end < entry.n_bytes:
                    end -= end % PAGE
                for block in blocks(bytes_of(values)[n_summed:end]):
                    checksum.update(block)
                n_summed = end
                if end < entry.n_bytes:
                    return
                coming.pop()
                checksums[entry.name] = checksum.text()
                store.put(entry.name, values)
                checksum, n_summed = Checksum(), 0

        for arrived in receive(
            self._group,
            content,
            timeout=self._bounded(notice.place.get("timeout")),
            runs=notice.runs,
            broadcast=setup.broadcast,
            message_bytes=setup.message_bytes,
        ):
            take(arrived)
        take(notice.n_bytes)  # tensors without elements
        return checksums

    def _content(self, n_bytes: int, device: str) -> torch.Tensor:
        if self._buffer.numel() < n_bytes or self._buffer.device.type != device:
            self._buffer = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        return self._buffer[:n_bytes]

    def _join(self, setup: GroupSetup) -> None:
        self._leave()
        self._group, self._setup = join_as(setup, timeout=self._timeout), setup

    def _leave(self) -> None:
        if self._group is not None:
            leave(self._group)
        self._group = self._setup = None

    def _bounded(self, limit: Any) -> float:
        return min(float(limit), self._timeout) if isinstance(limit, int | float) else self._timeout
