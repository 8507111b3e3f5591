"""Two copies of a server's weights: requests use the active one, and an update fills the other.

The second copy is built when the first update begins, so a server without updates holds one. ``commit`` exchanges the
two and moves no data.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from archon_core.contracts.engine import TrainEngine
from archon_core.contracts.serving import WeightReceiver, WeightTransportSpec
from archon_core.errors import ServerError
from archon_core.plugins import registry
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan
from archon_engine.checkpoint.checksum import bytes_of, checksum_of


class WeightCopies:
    """The weights in use and those of an update. Implements ``contracts.serving.WeightStore`` for the latter.

    Methods other than ``commit`` are called from one thread, beside the one that generates.

    Args:
        active: the initialised engine to start with.
        build: builds an initialised engine of the same model, whose weights do not matter.
        version: of the active weights; ``None`` if they are random and must not be used.
        incarnation: of the server.
    """

    def __init__(
        self, active: TrainEngine, build: Callable[[], TrainEngine], *, version: int | None, incarnation: str
    ) -> None:
        self.active = active
        self._standby: TrainEngine | None = None
        self._build = build
        self._version = version
        self._incarnation = incarnation
        self._plan: UpdatePlan | None = None
        self._receiver: WeightReceiver | None = None
        self._dtypes: dict[str, torch.dtype] = {}
        self._prepared: int | None = None
        # A commit must not fall between the check of an update and the first write into the other copy.
        self._lock = threading.Lock()

    @property
    def version(self) -> int:
        """Version of the active weights; -1 before the first update of a server that started without weights."""
        return -1 if self._version is None else self._version

    @property
    def is_usable(self) -> bool:
        """Whether there are weights to generate with."""
        return self._version is not None

    @property
    def prepared(self) -> int | None:
        """The version that is complete and verified, but not in use."""
        return self._prepared

    @property
    def updating(self) -> int | None:
        """The version that is being received."""
        return None if self._plan is None else self._plan.version

    def begin(self, plan: UpdatePlan) -> None:
        """Start an update, and drop an unfinished one.

        Raises:
            ServerError: the plan is for another incarnation or model, its version is older than the active one, or its
                transport is unknown.
        """
        if plan.incarnation not in ("", self._incarnation):
            raise ServerError(
                f"update: found a plan for incarnation {plan.incarnation}; this is {self._incarnation}; query the state"
            )
        if plan.version < self.version:
            raise ServerError(
                f"update: found version {plan.version}; allowed is {self.version}, the version in use, or a later one"
            )
        base = plan.manifest.base_version
        if base is not None and (base != self._version):
            raise ServerError(f"update: found base version {base}; this server has {self._version}; send all tensors")
        self._check_tensors(plan.manifest)
        with self._lock:
            self._drop()
            if self._standby is None:
                self._standby = self._build()
            spec = registry().get(WeightTransportSpec, plan.transport)
            if not spec.receiver:
                raise ServerError(f"update: transport {plan.transport!r} has no receiver for this kind of server")
            self._receiver = spec.load_part("receiver")()
            self._receiver.begin(plan)
            self._plan = plan

    def receive(self, notice: BucketNotice) -> Receipt:
        """Receive one bucket.

        Raises:
            ServerError: no update of this version is in progress, or the transport failed.
        """
        with self._lock:
            self._require(notice.version)
            assert self._receiver is not None
            checksums = self._receiver.receive(notice, self)
        return Receipt(self._incarnation, notice.version, dict(checksums))

    def verify(self, manifest: WeightManifest) -> Receipt:
        """Check every tensor of the update against the manifest, from this server's memory.

        Raises:
            ServerError: a tensor is missing or differs; the update cannot be committed.
        """
        with self._lock:
            self._require(manifest.version)
            checksums: dict[str, str] = {}
            for entry in manifest.tensors:
                values = self.stored(entry.name)
                if values is None:
                    raise ServerError(f"update to version {manifest.version}: tensor {entry.name!r} was not received")
                checksums[entry.name] = checksum_of(bytes_of(values))
                if entry.checksum and checksums[entry.name] != entry.checksum:
                    raise ServerError(
                        f"update to version {manifest.version}: tensor {entry.name!r} has checksum "
                        f"{checksums[entry.name]}, the publisher sent {entry.checksum}; publish again"
                    )
            self._prepared = manifest.version
        return Receipt(self._incarnation, manifest.version, checksums)

    def abort(self, version: int) -> None:
        """Drop the update to ``version``. Has no effect on another version."""
        with self._lock:
            if self.updating == version:
                self._drop()

    def check_commit(self, version: int) -> None:
        """Raise ServerError unless ``version`` is complete and verified, or in use already."""
        if version != self._prepared and version != self._version:
            raise ServerError(
                f"commit: found version {version}; prepared is {self._prepared}, in use {self._version}; verify the "
                "update first"
            )

    def commit(self, version: int) -> bool:
        """Exchange the copies. Returns whether the weights changed: a repeated commit has no effect."""
        self.check_commit(version)
        with self._lock:
            self.check_commit(version)
            if version != self._prepared:
                return False
            assert self._standby is not None
            self.active, self._standby = self._standby, self.active
            self._version = version
            self._drop()
            return True

    def put(self, name: str, values: Tensor) -> None:
        """See ``contracts.serving.WeightStore``."""
        assert self._standby is not None
        self._standby.received_weights.put(name, values)
        self._dtypes[name] = values.dtype

    def keep(self, name: str) -> None:
        """See ``contracts.serving.WeightStore``."""
        assert self._standby is not None
        assert self._plan is not None
        dtypes = {entry.name: entry.dtype for entry in self._plan.manifest.tensors}
        self._standby.received_weights.take_over(name, self.active.received_weights)
        self._dtypes[name] = getattr(torch, dtypes[name])

    def stored(self, name: str) -> Tensor | None:
        """See ``contracts.serving.WeightStore``."""
        if name not in self._dtypes or self._standby is None:
            return None
        return self._standby.received_weights.whole(name, self._dtypes[name])

    def _check_tensors(self, manifest: WeightManifest) -> None:
        ours = self.active.received_weights.shapes
        sent = {entry.name: entry.shape for entry in manifest.tensors}
        wrong = [name for name in {**ours, **sent} if tuple(ours.get(name, ())) != tuple(sent.get(name, ()))]
        if wrong or ours.keys() != sent.keys():
            name = (wrong or sorted(ours.keys() ^ sent.keys()))[0]
            raise ServerError(
                f"update: found {name!r} of shape {sent.get(name)}; this server's model has {ours.get(name)} "
                f"({len(wrong)} such tensors); publish the model that the server runs"
            )

    def _require(self, version: int) -> None:
        if self.updating != version:
            raise ServerError(f"update: found version {version}; being received is {self.updating}; begin again")

    def _drop(self) -> None:
        self._plan, self._prepared = None, None
        self._dtypes = {}
        if self._receiver is not None:
            self._receiver.end()
            self._receiver = None
