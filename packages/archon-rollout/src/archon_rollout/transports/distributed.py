"""The transport ``distributed``: over the network, one gloo group of two per server and version, in parallel threads.

The time limit of a transfer is ``max(5 s, 4 x the measured time)``, never torch's 30 minutes. That is how long a
stopped server delays the others. A transfer that exceeds its limit doubles the limit of the next ones, because it may
have been too low. ``broadcasting`` has the form for NCCL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Event, Lock
from typing import Any

import torch

from archon_core.contracts.weight_transport import TransportContext, WeightBucket
from archon_core.errors import ServerError, TransferError
from archon_core.ranks import addresses
from archon_core.receiving.elastic_group import SENDER, Group, GroupSetup, Sending, join_as, leave
from archon_core.receiving.shared_memory import view_tensor
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.record import ServerRecord
from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan
from archon_engine.compat import copy_all
from archon_rollout.publication.calls import MAX_CALLS
from archon_rollout.transports.notifying import NotifyingTransport
from archon_rollout.transports.store_process import Store, StoreProcess

JOIN_SECONDS = 20.0
"""Limit of the wait for a member to join. On an idle machine groups are built in 25 ms."""

LEAST_SECONDS = 5.0
SLOWER = 4.0
"""A transfer fails after the larger of ``LEAST_SECONDS`` and ``SLOWER`` times what the last ones took per byte."""


class DistributedTransport(NotifyingTransport):
    """Implements ``contracts.weight_transport.WeightTransport``.

    Args:
        context: what all transports are made from.
        store: where members find each other; ``None`` for a process of this trainer.
    """

    name = "distributed"

    def __init__(self, context: TransportContext, store: Store | None = None) -> None:
        super().__init__(context)
        self._store = StoreProcess() if store is None else store
        self._partners = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="distributed-partner")
        self._epoch = self._left_epoch = 0
        self._keeping = Lock()
        self._pairs: dict[str, GroupSetup] = {}
        self._groups: dict[str, Group] = {}
        # gloo reads from the memory of a message until its group is gone, also if nobody waits for it.
        self._sendings: dict[str, Sending] = {}
        self._content = torch.empty(0, dtype=torch.uint8)
        self._measured_bytes = self._measured_version = -1
        self._measuring = Lock()
        self._seconds_per_byte = 0.0
        self._least_seconds = LEAST_SECONDS
        self._exceeded = False
        self._store.start()

    def commit(self, version: int) -> None:
        """The version is in use, and its groups are not needed any more."""
        super().commit(version)
        self._leave_finished()
        if not self._exceeded:
            self._least_seconds = LEAST_SECONDS
        self._exceeded = False

    def abort(self) -> None:
        """Leave all groups."""
        super().abort()
        self._leave_groups()

    def close(self) -> None:
        """End the store's process."""
        super().close()
        self._partners.shutdown(wait=False)
        self._store.close()

    def _setups(self, manifest: WeightManifest) -> Mapping[str, Mapping[str, Any]]:
        self._pairs = self._new_pairs()
        return {incarnation: setup.as_data() for incarnation, setup in self._pairs.items()}

    def _new_pairs(self) -> dict[str, GroupSetup]:
        """Setups of new groups of two, by incarnation."""
        self._epoch += 1
        port, limit = self._store.port, min(self._context.timeout / 2, JOIN_SECONDS)
        return {
            server.incarnation: GroupSetup(
                address_towards(server.address), port, f"{self._prefix}/{server.incarnation}", limit
            )
            for server in self._servers
        }

    @property
    def _prefix(self) -> str:
        """The name of the groups of this epoch."""
        return f"weights/{self._context.run}/{self._epoch}"

    def _begin(self, server: ServerRecord, plan: UpdatePlan) -> None:
        # Each end waits for the other, so the call and this end's part run together.
        with self._joining_pair(server, self._pairs[server.incarnation]) as joining:
            self._call_to_begin(server, plan)
        joining.result()

    def _place(self, bucket: WeightBucket, notice: BucketNotice) -> Mapping[str, Any]:
        if bucket.content is not None:
            self._content = bucket.content
        else:
            self._content = torch.empty(notice.n_bytes, dtype=torch.uint8)
            copy_all(
                [view_tensor(self._content, entry, offset) for entry, offset in notice.sent],
                [bucket.tensors[entry.name] for entry, _ in notice.sent],
            )
        return {"timeout": self._time_limit(notice)}

    def _let_receive(self, server: ServerRecord, notice: BucketNotice) -> Receipt:
        """Send to one server while it receives, over its pair; joins that first if it is new."""
        limit, start = self._time_limit(notice), time.perf_counter()
        setup = self._pairs[server.incarnation]
        try:
            if server.incarnation in self._groups:
                sending = self._start_sending(self._groups[server.incarnation], server, setup, notice, limit)
                receipt = self._call_to_receive(server, notice, limit)
            else:
                groups = {server.incarnation: setup.as_data()}
                joined = replace(notice, place={**notice.place, "groups": groups, "timeout": limit})
                # Each end waits for the other to join, so the call and this end's part run together.
                with self._joining_pair(
                    server, setup, limit, then=lambda pair: self._start_sending(pair, server, setup, notice, limit)
                ) as joining:
                    receipt = self._call_to_receive(server, joined, limit)
                sending = joining.result()
        except ServerError:
            self._note_failure(time.perf_counter() - start, limit)
            raise
        # The receipt has the checksums of what arrived; this end's own impression adds nothing.
        with suppress(TransferError):
            sending.wait()
        self._measure(notice, time.perf_counter() - start)
        return receipt

    def _call_to_receive(self, server: ServerRecord, notice: BucketNotice, limit: float) -> Receipt:
        # The server's limit ends first, so that its own reason arrives.
        timeout = min(self._context.timeout, limit) + LEAST_SECONDS
        return self._context.driver.receive_bucket(server, notice, timeout=timeout)

    def _start_sending(
        self, group: Group, server: ServerRecord, setup: GroupSetup, notice: BucketNotice, limit: float
    ) -> Sending:
        sending = Sending(group, self._content, timeout=limit, runs=notice.runs, message_bytes=setup.message_bytes)
        self._sendings[server.incarnation] = sending
        return sending

    @contextmanager
    def _joining_pair(
        self,
        server: ServerRecord,
        setup: GroupSetup,
        limit: float | None = None,
        then: Callable[[Group], Any] = lambda pair: pair,
    ) -> Iterator[Future[Any]]:
        """Join a pair in another thread, and do something with it, while the caller calls the server. If the call
        fails, the thread stops waiting for the server."""
        epoch, failed = self._epoch, Event()

        def given_up() -> bool:
            return failed.is_set() or epoch <= self._left_epoch

        joining = self._partners.submit(lambda: then(self._join(epoch, server, setup, limit, given_up)))
        try:
            yield joining
        except BaseException:
            failed.set()
            raise

    def _join(
        self, epoch: int, server: ServerRecord, setup: GroupSetup, limit: float | None, given_up: Callable[[], bool]
    ) -> Group:
        """Join a pair, and keep it until the groups of its epoch are left.

        Raises:
            ServerError: the server did not arrive; or the groups were left meanwhile, because the call to the server
                failed.
        """
        group = join_as(setup, SENDER, timeout=limit, given_up=given_up)
        with self._keeping:
            if epoch > self._left_epoch:
                self._groups[server.incarnation] = group
                return group
        leave(group)
        raise ServerError(f"server {server.address} joined a group of epoch {epoch}, which was left before")

    def _measure(self, notice: BucketNotice, seconds: float) -> None:
        """Note how long a bucket took; of the servers that receive one version, the slowest counts."""
        n_bytes = _sent_bytes(notice)
        if not n_bytes:
            return
        measured = (notice.version, n_bytes)
        with self._measuring:
            if n_bytes < self._measured_bytes:  # small buckets measure latency
                return
            slowest = self._seconds_per_byte if measured == (self._measured_version, self._measured_bytes) else 0.0
            self._seconds_per_byte = max(slowest, seconds / n_bytes)
            self._measured_version, self._measured_bytes = measured

    def _note_failure(self, seconds: float, limit: float) -> None:
        """After a failure at the time limit, double it, until a version is committed without such a failure: only
        transfers that succeed are measured, so a limit that is too low would stay too low."""
        if seconds >= limit:
            with self._measuring:
                self._least_seconds = max(self._least_seconds, 2 * limit)
                self._exceeded = True

    def _time_limit(self, notice: BucketNotice) -> float:
        """Time limit of a transfer, in seconds."""
        if not self._seconds_per_byte:
            return self._context.timeout
        measured = SLOWER * self._seconds_per_byte * _sent_bytes(notice)
        return min(self._context.timeout, max(self._least_seconds, measured))

    def _leave_finished(self) -> None:
        """Leave the groups that no further version uses."""
        self._leave_groups()

    def _leave_groups(self) -> None:
        with self._keeping:
            self._left_epoch, groups = self._epoch, self._groups
            self._groups, self._sendings = {}, {}
        for group in groups.values():
            leave(group)


def _sent_bytes(notice: BucketNotice) -> int:
    """Bytes of a bucket that are sent. Tensors that servers keep leave gaps in it."""
    return sum(end - start for start, end in notice.runs)


def address_towards(address: str) -> str:
    """The address of this host as the host of ``address`` reaches it.

    Raises:
        ServerError: no network leads there.
    """
    host, _, port = address.rpartition(":")
    try:
        return addresses.address_towards(host.strip("[]"), int(port))
    except OSError as error:
        raise ServerError(f"server {address}: no network leads there: {error}; check its address") from error
