"""The transport ``distributed`` with one group of the trainer and all servers, in which the trainer broadcasts buckets.

This is the form for NCCL: each byte leaves the trainer's GPU once, however many servers there are. A broadcast fails
for all if one member fails: healthy servers wait for the time limit and then say so. The group is not repaired. The
bucket and the rest of the version go to each remaining server alone, over gloo, in groups of a new epoch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.weight_transport import (
    BucketMemory,
    Outcome,
    TransportContext,
    WeightBucket,
    WeightTransport,
)
from archon_core.errors import ServerError, TransferError
from archon_core.receiving.elastic_group import SENDER, Group, GroupSetup, Sending, join_as, leave
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.record import ServerRecord
from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan
from archon_rollout.transports.distributed import DistributedTransport
from archon_rollout.transports.store_process import Store

logger = logging.getLogger(__name__)

BACKEND = "weight_group"
"""The key of the backend in ``TransportContext.options``."""


def distributed_transport(context: TransportContext) -> WeightTransport:
    """The transport for ``rollout.weight_group``: pairs for gloo, broadcasts for NCCL."""
    if context.options.get(BACKEND, "gloo") == "nccl":
        return BroadcastTransport(context)
    return DistributedTransport(context)


class BroadcastTransport(DistributedTransport):
    """Implements ``contracts.weight_transport.WeightTransport``.

    Args:
        context: what all transports are made from.
        store: where members find each other; ``None`` for a process of this trainer.
        backend: of the group that broadcasts.
        device: of the buckets.
    """

    def __init__(
        self, context: TransportContext, store: Store | None = None, *, backend: str = "nccl", device: str = "cuda"
    ) -> None:
        super().__init__(context, store)
        self._backend = backend
        self._device = device
        self._buffers: list[Tensor] = []
        self._in_pairs = False
        self._members: dict[str, GroupSetup] = {}
        self._joining: Future[Group] | None = None
        self._group: Group | None = None

    def prepare(self, version: int, manifest: WeightManifest, servers: Sequence[ServerRecord]) -> Mapping[str, Outcome]:
        """Start a version. If the group cannot be built, nobody knows who was missing: each server then gets a group of
        its own, and the missing one fails alone."""
        self._in_pairs = False
        outcomes = super().prepare(version, manifest, servers)
        reasons = {outcome.error for outcome in outcomes.values() if outcome.error}
        try:
            if self._joining is not None:
                self._group, self._joining = self._joining.result(), None
        except ServerError as error:
            reasons.add(str(error))
        if not reasons:
            return outcomes
        logger.warning("version %d is sent to each server alone: %s", version, "; ".join(sorted(reasons)))
        self._in_pairs = True
        again = [server for server in servers if not outcomes[server.incarnation].uncertain]
        return {**outcomes, **super().prepare(version, manifest, again)}

    def memory(self) -> BucketMemory | None:
        """Two buffers on the device; ``None`` for the CPU, where the engine has some."""
        return None if self._device == "cpu" else self._buffer

    def _buffer(self, index: int, n_bytes: int) -> Tensor:
        """Implements ``contracts.weight_transport.BucketMemory``."""
        if not self._buffers or self._buffers[0].numel() < n_bytes:
            self._buffers = [torch.empty(n_bytes, dtype=torch.uint8, device=self._device) for _ in range(2)]
        return self._buffers[index % 2]

    def _setups(self, manifest: WeightManifest) -> Mapping[str, Mapping[str, Any]]:
        if self._in_pairs or not self._servers:
            return super()._setups(manifest)
        if self._group is None or list(self._members) != [server.incarnation for server in self._servers]:
            self._leave_groups()
            self._members = self._new_members()
            self._joining = self._partners.submit(join_as, next(iter(self._members.values())), SENDER)
        return {incarnation: setup.as_data() for incarnation, setup in self._members.items()}

    def _new_members(self) -> dict[str, GroupSetup]:
        """Setups of a new group of all servers, by incarnation."""
        pairs = self._new_pairs()
        return {
            incarnation: replace(
                pair,
                prefix=self._prefix,
                rank=rank,
                size=len(pairs) + 1,
                backend=self._backend,
                broadcast=True,
                kept=True,
            )
            for rank, (incarnation, pair) in enumerate(pairs.items(), start=SENDER + 1)
        }

    def _begin(self, server: ServerRecord, plan: UpdatePlan) -> None:
        if self._in_pairs:
            super()._begin(server, plan)
        else:
            self._call_to_begin(server, plan)  # the trainer joins the group of all once; see _setups

    def _place(self, bucket: WeightBucket, notice: BucketNotice) -> Mapping[str, Any]:
        place = super()._place(bucket, notice)
        if self._group is None:
            self._content = self._content.cpu()  # pairs are gloo groups
        return place

    def _notify(self, servers: Sequence[ServerRecord], notice: BucketNotice) -> dict[str, Outcome]:
        if self._group is None or not notice.runs:
            return super()._notify(servers, notice)
        start, limit, reason = time.perf_counter(), self._time_limit(notice), ""
        outcomes = {server.incarnation: Outcome(None, "the trainer could not broadcast") for server in servers}
        try:
            sending = Sending(self._group, self._content, timeout=limit, runs=notice.runs, broadcast=True)
            outcomes = super()._notify(servers, notice)
            sending.wait()
        except TransferError as error:
            reason = str(error)
        if not reason and not any(outcome.error for outcome in outcomes.values()):
            self._measure(notice, time.perf_counter() - start)
            return outcomes
        self._note_failure(time.perf_counter() - start, limit)
        return outcomes | self._send_again(servers, notice, outcomes, reason)

    def _let_receive(self, server: ServerRecord, notice: BucketNotice) -> Receipt:
        if self._group is None:
            return super()._let_receive(server, notice)
        return self._call_to_receive(server, notice, self._time_limit(notice))

    def _send_again(
        self, servers: Sequence[ServerRecord], notice: BucketNotice, outcomes: Mapping[str, Outcome], reason: str
    ) -> dict[str, Outcome]:
        """Send a bucket over pairs to the servers that did not get it. A server that did not answer is out: it may be
        in the old group still."""
        again = [one for one in servers if outcomes[one.incarnation].error and not outcomes[one.incarnation].uncertain]
        logger.warning(
            "the broadcast of bucket %d of version %d failed (%s); the rest is sent to each server alone",
            notice.index,
            notice.version,
            reason or next((outcome.error for outcome in outcomes.values() if outcome.error), ""),
        )
        self._leave_groups()
        self._pairs = self._new_pairs()
        self._content = self._content.cpu()
        found = super()._notify(again, notice)
        return {
            name: replace(outcome, error=f"{outcomes[name].error}; sent again: {outcome.error}")
            if outcome.error
            else outcome
            for name, outcome in found.items()
        }

    def _leave_finished(self) -> None:
        if self._group is None:  # otherwise it stays, for the next version with the same servers
            self._leave_groups()

    def _leave_groups(self) -> None:
        super()._leave_groups()
        if self._group is not None:
            leave(self._group)
        self._group = self._joining = None
