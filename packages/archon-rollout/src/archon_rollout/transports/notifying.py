"""The common part of all transports: place a bucket where servers can read it, notify them, collect their receipts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from archon_core.contracts.weight_transport import (
    BucketMemory,
    Outcome,
    TransportContext,
    WeightBucket,
)
from archon_core.errors import ServerError
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.record import ServerRecord
from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan, receipt_problem
from archon_rollout.publication.calls import MAX_CALLS, call_each


@dataclass(frozen=True)
class Pending:
    """A bucket on its way: the outcome per incarnation, later."""

    outcomes: Future[dict[str, Outcome]]


class NotifyingTransport(ABC):
    """Implements ``contracts.weight_transport.WeightTransport``, except for where the bytes are placed."""

    name: str

    def __init__(self, context: TransportContext) -> None:
        self._context = context
        self._servers: list[ServerRecord] = []
        self._unfinished = False
        self._calls = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix=f"{self.name}-call")
        # One bucket after the other; it waits for the calls, so it needs a thread outside their pool.
        self._deliveries = ThreadPoolExecutor(1, thread_name_prefix=f"{self.name}-delivery")

    def prepare(self, version: int, manifest: WeightManifest, servers: Sequence[ServerRecord]) -> Mapping[str, Outcome]:
        """Start a version."""
        if self._unfinished:
            self.abort()
        self._servers, self._unfinished = list(servers), True
        try:
            setups = self._setups(manifest)
        except ServerError as error:
            return self._keep_working({server.incarnation: Outcome(None, str(error)) for server in servers})

        def begin(server: ServerRecord) -> None:
            setup, publisher = setups[server.incarnation], self._context.run
            plan = UpdatePlan(manifest, self.name, setup, server.incarnation, publisher)
            self._begin(server, plan)

        return self._keep_working(call_each(self._calls, servers, begin))

    def memory(self) -> BucketMemory | None:
        """The engine's own memory, unless the transport has some."""
        return None

    def send(self, bucket: WeightBucket, notice: BucketNotice) -> Pending:
        """Start sending a bucket."""
        return Pending(self._deliveries.submit(self._deliver, bucket, notice))

    def wait(self, pending: Pending) -> Mapping[str, Outcome]:
        """Wait for all receipts of a bucket, and check them."""
        return self._keep_working(pending.outcomes.result())

    def finish(self, manifest: WeightManifest) -> None:
        """All buckets were received."""
        return  # nothing to do, unless the transport completes something then

    def commit(self, version: int) -> None:
        """The version is in use."""
        self._servers, self._unfinished = [], False

    def abort(self) -> None:
        """Drop an unfinished version."""
        self._servers, self._unfinished = [], False

    def close(self) -> None:
        """Free all resources."""
        self.abort()
        self._deliveries.shutdown()
        self._calls.shutdown(wait=False)

    @abstractmethod
    def _setups(self, manifest: WeightManifest) -> Mapping[str, Mapping[str, Any]]:
        """What the receiving ends need, per incarnation. Raises ServerError if the transport cannot start."""

    @abstractmethod
    def _place(self, bucket: WeightBucket, notice: BucketNotice) -> Mapping[str, Any]:
        """Put the bytes where servers find them; returns ``BucketNotice.place``."""

    def _begin(self, server: ServerRecord, plan: UpdatePlan) -> None:
        """Start an update on a server; a subclass also does what this end must do meanwhile."""
        self._call_to_begin(server, plan)

    def _call_to_begin(self, server: ServerRecord, plan: UpdatePlan) -> None:
        self._context.driver.begin_update(server, plan, timeout=self._context.timeout)

    def _let_receive(self, server: ServerRecord, notice: BucketNotice) -> Receipt:
        """Let a server receive a bucket; a subclass also does what this end must do meanwhile."""
        return self._context.driver.receive_bucket(server, notice, timeout=self._context.timeout)

    def _deliver(self, bucket: WeightBucket, notice: BucketNotice) -> dict[str, Outcome]:
        servers = list(self._servers)
        try:
            placed = replace(notice, place=self._place(bucket, notice))
        except Exception as error:
            # The other ranks go on sending shards: an exception here would leave them waiting.
            reason = str(error) if isinstance(error, ServerError) else f"{type(error).__name__}: {error}"
            return {server.incarnation: Outcome(None, reason) for server in servers}
        return self._notify(servers, placed)

    def _notify(self, servers: Sequence[ServerRecord], notice: BucketNotice) -> dict[str, Outcome]:
        """Let servers receive a placed bucket, and check their receipts."""

        def receive(server: ServerRecord) -> Receipt:
            receipt = self._let_receive(server, notice)
            if self._context.driver.capabilities.checksums and (
                problem := receipt_problem(receipt, notice, incarnation=server.incarnation)
            ):
                raise ServerError(f"bucket {notice.index}: {problem}")
            return receipt

        return call_each(self._calls, servers, receive)

    def _keep_working(self, outcomes: Mapping[str, Outcome]) -> Mapping[str, Outcome]:
        """Servers that failed receive nothing more of this version."""
        failed = {incarnation for incarnation, outcome in outcomes.items() if outcome.error}
        self._servers = [server for server in self._servers if server.incarnation not in failed]
        return outcomes
