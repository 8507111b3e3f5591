"""Weights on their way into vLLM: staged and verified in host memory while it generates, then loaded in one step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from archon_core.contracts.weight_transport import WeightReceiver
from archon_core.errors import ServerError
from archon_core.receiving.distributed import DistributedReceiver
from archon_core.receiving.memory_store import MemoryStore
from archon_core.receiving.shared_memory import SharedMemoryReceiver
from archon_core.receiving.updates import WeightUpdates
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan
from archon_core.serving.weight_labels import NO_VERSION

RECEIVERS: Mapping[str, Callable[..., WeightReceiver]] = {
    "shm": SharedMemoryReceiver,
    "distributed": DistributedReceiver,
}

LONGEST_WAIT = 600.0
"""Upper bound of a wait for the trainer, in seconds. Plans and notices name shorter ones."""


class StagedStore(MemoryStore):
    """A store whose commit loads the weights into the model. If that fails, it loads the previous ones again.

    Args:
        load: loads whole Hugging Face tensors into the model, in place.

    Attributes:
        broken: whether the model has neither whole old weights nor whole new ones.
    """

    def __init__(self, load: Callable[[Iterable[tuple[str, Tensor]]], None]) -> None:
        super().__init__()
        self._load = load
        self.broken = False

    def commit(self, version: int) -> None:
        """Load the received weights. The caller has paused generation.

        Raises:
            ServerError: they cannot be loaded. The message says whether the model has whole old weights.
        """
        received = {name: self._spare[name] for name in self._spare if name in self._received}
        self.broken = True
        try:
            self._load(received.items())
        except Exception as error:
            if not self.tensors:
                raise ServerError(
                    f"weights of version {version}: the model cannot load them: {error}; there are no previous ones to "
                    "return to: restart the server"
                ) from error
            self._load(self.tensors.items())
            self.broken = False
            raise ServerError(
                f"weights of version {version}: the model cannot load them: {error}; it has the previous ones again"
            ) from error
        super().commit(version)
        self.broken = False


class StagedUpdates:
    """The update protocol inside one worker of vLLM: actions in, receipts out.

    Args:
        load: loads tensors into the model.
        incarnation: identity of this start of the server, the same in all of its workers.
    """

    def __init__(self, load: Callable[[Iterable[tuple[str, Tensor]]], None], *, incarnation: str) -> None:
        self.incarnation = incarnation
        self._store = StagedStore(load)
        self._updates = WeightUpdates(
            self._store, incarnation=incarnation, version=NO_VERSION, receiver_of=_receiver_of
        )
        self._receipt: Receipt | None = None
        self._may_finish = False

    def begin(self, plan: Any) -> None:
        """Start an update; ``plan`` as JSON."""
        self._receipt, self._may_finish = None, False
        self._updates.begin(UpdatePlan.from_data(plan))

    def act(self, action: str, data: Any) -> None:
        """Run one action of an update.

        Args:
            action: ``bucket``, ``verify``, ``commit`` or ``abort``.
            data: a notice, a manifest, or a version, as JSON.

        Raises:
            ServerError: the action is invalid now, or failed; see ``WeightUpdates``.
        """
        self._receipt, self._may_finish = None, False
        if action == "bucket":
            self._receipt = self._updates.receive(BucketNotice.from_data(data))
        elif action == "verify":
            self._receipt = self._updates.verify(WeightManifest.from_data(data))
        elif action == "commit":
            self._updates.commit(data)
            self._may_finish = True
        elif action == "abort":
            self._updates.abort(data)
            self._may_finish = True
        else:
            raise ServerError(f"weight update: found action {action!r}; allowed are bucket, verify, commit, abort")

    def finish(self) -> None:
        """End the session of vLLM, which labels the weights afterwards.

        Raises:
            ServerError: the last action was neither a commit nor an abort. A late call must not label old weights with
                the version of an update that is still being received.
        """
        if not self._may_finish and self._updates.updating is not None:
            raise ServerError(f"finish: version {self._updates.updating} is still being received; commit or abort it")
        self._may_finish = False

    def receipt(self) -> dict[str, Any]:
        """The receipt of the last action.

        Raises:
            ServerError: the last action has none, or failed.
        """
        if self._receipt is None:
            raise ServerError("weight update: found no receipt; the last action failed, or was not a bucket or verify")
        return self._receipt.as_data()

    def state(self) -> dict[str, Any]:
        """What this worker knows of weights."""
        updates = self._updates
        return {
            "incarnation": self.incarnation,
            "version": updates.version,
            "prepared": updates.prepared,
            "updating": updates.updating,
            "broken": self._store.broken,
        }

    def drop(self) -> None:
        """Forget an unfinished update."""
        if self._updates.updating is not None:
            self._updates.abort(self._updates.updating)


def incarnation_of(instance_id: str) -> str:
    """The identity of this start: vLLM's instance id, and the parent process with its start time.

    All workers of a server have the same parent. The start time, in clock ticks since boot, tells processes apart that
    had the same id.
    """
    parent = os.getppid()
    status = Path(f"/proc/{parent}/stat")
    started = status.read_text(encoding="utf-8").rpartition(")")[2].split()[19] if status.exists() else "0"
    return f"{instance_id}-{parent:x}-{int(started):x}"


def _receiver_of(transport: str) -> WeightReceiver:
    if transport not in RECEIVERS:
        raise ServerError(f"transport {transport!r}: allowed inside vLLM are {', '.join(RECEIVERS)}")
    return RECEIVERS[transport](timeout=LONGEST_WAIT)
