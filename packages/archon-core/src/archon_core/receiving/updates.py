"""The update protocol inside a server: one update at a time, in order, all or nothing.

A server connects its control routes to ``WeightUpdates``. Whatever goes wrong, and however late a call is executed, the
weights in use stay whole: an update is used only after every tensor of the manifest arrived and the server's own
checksums of its memory equal the manifest's. A call that does not belong to the update in progress is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from archon_core.contracts.weight_transport import WeightReceiver, WeightStore
from archon_core.errors import ServerError, TransferError
from archon_core.receiving.checksum import bytes_of, checksum_of
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan


class WeightUpdates:
    """Receives updates into a store. Methods may be called from any thread; they run one at a time.

    Args:
        store: where the weights go.
        incarnation: uuid of this start of the server.
        version: version of the weights in use.
        receiver_of: returns a new receiving end for the name of a transport. One is made per transport, and reused.
    """

    def __init__(
        self,
        store: WeightStore,
        *,
        incarnation: str,
        version: int,
        receiver_of: Callable[[str], WeightReceiver],
    ) -> None:
        self._store = store
        self._incarnation = incarnation
        self._receiver_of = receiver_of
        self._lock = threading.Lock()
        self._version = version
        self._checksums: dict[str, str] = {}
        # Publisher -> the last version that it committed.
        self._committed: dict[str, int] = {}
        self._plan: UpdatePlan | None = None
        self._receiver: WeightReceiver | None = None
        self._receivers: dict[str, WeightReceiver] = {}
        self._received: dict[str, str] = {}
        self._next_bucket = 0
        self._prepared: int | None = None

    @property
    def version(self) -> int:
        """Version of the weights in use."""
        return self._version

    @property
    def updating(self) -> int | None:
        """Version that is being received; ``None`` outside an update."""
        plan = self._plan
        return None if plan is None else plan.version

    @property
    def prepared(self) -> int | None:
        """Version that was received and verified, but not committed."""
        return self._prepared

    def begin(self, plan: UpdatePlan) -> None:
        """Start an update; drops an unfinished one.

        Raises:
            ServerError: the plan is for another incarnation, builds on a version that this server does not have, or is
                for an older version than its publisher committed: it is executed late, and drops nothing.
        """
        with self._lock:
            committed = self._committed.get(plan.publisher, plan.version)
            if plan.version < committed:
                raise ServerError(
                    f"update: found version {plan.version}; allowed is {committed}, the last version of this "
                    "publisher, or a later one"
                )
            self._drop()
            if plan.incarnation not in ("", self._incarnation):
                raise ServerError(
                    f"update to version {plan.version}: found a plan for incarnation {plan.incarnation}; this server "
                    f"is {self._incarnation}, started later on the same address; read the registry again"
                )
            if plan.manifest.base_version not in (None, self._version):
                raise ServerError(
                    f"update to version {plan.version}: found a plan that builds on version "
                    f"{plan.manifest.base_version}; this server has version {self._version}; send all tensors"
                )
            if plan.transport not in self._receivers:
                self._receivers[plan.transport] = self._receiver_of(plan.transport)
            receiver = self._receivers[plan.transport]
            try:
                receiver.begin(plan)
            except BaseException:
                receiver.end()
                raise
            self._plan, self._receiver = plan, receiver

    def receive(self, notice: BucketNotice) -> Receipt:
        """Receive one bucket.

        Raises:
            TransferError: not all bytes arrived. The same bucket may be received again.
            ServerError: the bucket is not the next one of the update in progress, or is invalid. The update is then
                dropped.
        """
        with self._lock, self._dropping_on_error():
            plan, receiver = self._plan_for(notice.version)
            start = len(self._received)
            planned = plan.manifest.tensors[start : start + len(notice.tensors)]
            announced = [(entry.name, entry.dtype, entry.shape) for entry in notice.tensors]
            if notice.index != self._next_bucket or announced != [(e.name, e.dtype, e.shape) for e in planned]:
                raise ServerError(
                    f"update to version {plan.version}: found bucket {notice.index} with "
                    f"{announced[0][0] if announced else 'no tensor'!r}; expected bucket {self._next_bucket} with "
                    f"{plan.manifest.tensors[start].name if start < len(plan.manifest.tensors) else 'no tensor'!r}; "
                    "tensors arrive once, in the order of the manifest; start the update again"
                )
            received = dict(receiver.receive(notice, self._store))
            for entry in notice.kept:
                self._store.keep(entry.name)
                received[entry.name] = self._checksum(entry.name, self._checksums.get(entry.name, ""))
            checksums = {entry.name: received[entry.name] for entry in notice.tensors}
            self._received |= checksums
            self._next_bucket += 1
            return Receipt(self._incarnation, plan.version, checksums)

    def verify(self, manifest: WeightManifest) -> Receipt:
        """Compare all received tensors with the complete manifest. Afterwards the update can be committed.

        Raises:
            ServerError: a tensor is missing or has other values. The update is then dropped.
        """
        with self._lock, self._dropping_on_error():
            plan, receiver = self._plan_for(manifest.version)
            names = [entry.name for entry in manifest.tensors]
            if names != [entry.name for entry in plan.manifest.tensors]:
                raise ServerError(f"update to version {plan.version}: found another list of tensors than at its start")
            missing = [name for name in names if name not in self._received]
            if missing:
                raise ServerError(
                    f"update to version {plan.version}: {len(missing)} of {len(names)} tensors were never received, "
                    f"such as {missing[0]!r}; start the update again"
                )
            held = {name: self._checksum(name, self._received[name]) for name in names}
            wrong = [entry.name for entry in manifest.tensors if held[entry.name] != entry.checksum]
            if wrong:
                raise ServerError(
                    f"update to version {plan.version}: {len(wrong)} tensors are missing or have other values "
                    f"than were sent, such as {wrong[0]!r}; start the update again"
                )
            self._received = held
            # Now, and not in the commit: to unmap shared memory takes milliseconds, in which no token would be made.
            receiver.end()
            self._prepared = plan.version
            return Receipt(self._incarnation, plan.version, held)

    def commit(self, version: int) -> None:
        """Switch to the verified weights. The caller has stopped generation between two tokens. Idempotent.

        Raises:
            ServerError: this version is not prepared, such as when a commit is executed late.
        """
        with self._lock:
            self.check_commit(version)
            if self._prepared != version:
                return
            plan, _ = self._plan_for(version)
            self._store.commit(version)
            self._version, self._checksums = version, self._received
            self._committed[plan.publisher] = version
            self._forget()

    def check_commit(self, version: int) -> None:
        """Raise ServerError unless ``version`` is prepared, or in use already and not being received again.

        A commit that arrives late, when the next update is in progress, changes nothing.
        """
        if version != self._prepared and (version != self._version or version == self.updating):
            raise ServerError(
                f"commit of version {version}: found prepared version {self._prepared}, in use {self._version}; "
                "only a verified update is committed; query the state before the next call"
            )

    def abort(self, version: int) -> None:
        """Drop what was received of a version. No effect on other versions, or after the commit."""
        with self._lock:
            if self.updating == version:
                self._drop()

    def _checksum(self, name: str, arrived: str) -> str:
        """The checksum of a tensor in the store; that of the bytes that arrived if the store cannot read back."""
        if not self._store.reads_back:
            return arrived
        stored = self._store.stored(name)
        return "" if stored is None else checksum_of(bytes_of(stored.contiguous()))

    def _plan_for(self, version: int) -> tuple[UpdatePlan, WeightReceiver]:
        if self._plan is None or self._receiver is None or self._plan.version != version:
            raise ServerError(
                f"update to version {version}: found {'no update' if self._plan is None else self._plan.version} in "
                "progress; it was aborted, or replaced by a later one; start it again"
            )
        return self._plan, self._receiver

    @contextmanager
    def _dropping_on_error(self) -> Iterator[None]:
        try:
            yield
        except TransferError:
            raise
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._plan is not None:
            self._store.drop()
        self._end()

    def _end(self) -> None:
        if self._receiver is not None:
            self._receiver.end()
        self._forget()

    def _forget(self) -> None:
        self._plan = self._receiver = self._prepared = None
        self._received, self._next_bucket = {}, 0
