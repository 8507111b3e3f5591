"""The ``ray`` registry: entries in a named, detached actor of the Ray cluster, one per run.

The actor outlives the processes that use it, and starts again elsewhere when its machine is lost. Servers then announce
themselves again with their next refresh. It ends with the launcher, or when nobody has used it for some time.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.exceptions import RayError as RaysOwnError

from archon_core.contracts.server_registry import RegistryChange
from archon_core.errors import ServerError
from archon_core.serving.change_log import ChangeLog
from archon_core.serving.record import ServerRecord
from archon_ray.connection import NAMESPACE, connect
from archon_ray.entries import Entries, actor_name
from archon_ray.remote import RayError

logger = logging.getLogger(__name__)

CALL_SECONDS = 30.0
"""Time limit of one call. The first one starts the actor."""

RESTART_SECONDS = 10.0
"""Time for Ray to start a lost actor again."""

RETRY_SECONDS = 0.5

IDLE_SECONDS = 600.0
"""Time after which an actor without entries and calls ends itself."""

RETURN_SECONDS = 20.0
"""Time for servers to announce themselves after the actor has lost its entries."""


class EntriesActor(Entries):
    """The actor."""

    def __init__(self) -> None:
        super().__init__()
        handle = ray.get_runtime_context().current_actor
        threading.Thread(target=self._end_when_idle, args=(handle,), daemon=True).start()

    def _end_when_idle(self, handle: Any) -> None:
        while self.idle_seconds() < IDLE_SECONDS:
            time.sleep(IDLE_SECONDS / 20)
        ray.kill(handle, no_restart=True)


class RayRegistry:
    """Implements ``contracts.server_registry.ServerRegistry``. Every method but ``close`` may raise ServerError.

    Args:
        name: of the actor.
        clock: seconds, never going back.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._actor: Any = None
        self._log = ChangeLog()
        self._start = ""
        self._known: dict[str, ServerRecord] = {}
        self._kept_until = 0.0

    def announce(self, id: str, record: ServerRecord, ttl: float) -> RayAnnouncement:
        """Add an entry."""
        announcement = RayAnnouncement(self, id, record, ttl)
        announcement.refresh()
        return announcement

    def list(self) -> Mapping[str, ServerRecord]:
        """All entries that have not expired. After the loss of the actor, also those that it had, for a short time."""
        start, found = self.call("list")
        known = {}
        for id, data in found.items():
            try:
                known[id] = ServerRecord.from_data(data)
            except ServerError as error:
                logger.warning("%s: entry %s: %s", self._name, id, error)
        now = self._clock()
        if start != self._start:
            if self._start:
                self._kept_until = now + RETURN_SECONDS
            self._start = start
        if now < self._kept_until:
            known = {**self._known, **known}
        self._known = known
        return dict(known)

    def changes(self, since: int) -> tuple[int, Sequence[RegistryChange]]:
        """The changes after a cursor, and the next cursor."""
        return self._log.changes(self.list(), since)

    def close(self) -> None:
        """Forget the actor. The connection of the process stays: others may use it."""
        self._actor = None

    def call(self, method: str, *arguments: Any) -> Any:
        """Call the actor, which is started if it does not run."""
        try:
            connect_or_raise()
            return self._call(method, *arguments)
        except (RayError, RaysOwnError, RuntimeError, ValueError) as error:
            self._actor = None
            raise ServerError(
                f"cluster.name_resolve: the Ray actor {self._name} did not answer: {' '.join(str(error).split())}; "
                "check the Ray cluster (`ray status`), or set RAY_ADDRESS to its address"
            ) from error

    def _call(self, method: str, *arguments: Any) -> Any:
        deadline = time.monotonic() + RESTART_SECONDS
        while True:
            if self._actor is None:
                self._actor = _find_or_start(self._name)
            try:
                return ray.get(getattr(self._actor, method).remote(*arguments), timeout=CALL_SECONDS)
            except RayActorError:  # it ended itself, or its machine is gone and Ray starts it elsewhere
                self._actor = None
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_SECONDS)


def connect_or_raise() -> None:
    """Connect this process to the cluster of ``RAY_ADDRESS``, else to that of this machine."""
    if not connect(None):
        raise RayError("no Ray cluster runs on this machine")


def _find_or_start(name: str) -> Any:
    return (
        ray.remote(EntriesActor)
        .options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
        )
        .remote()
    )


class RayAnnouncement:
    """An entry of a ``RayRegistry``."""

    def __init__(self, registry: RayRegistry, id: str, record: ServerRecord, ttl: float) -> None:
        self._registry, self._id, self._record, self._ttl = registry, id, record, ttl
        self._withdrawn = False

    def refresh(self, record: ServerRecord | None = None) -> None:
        """Renew the entry, which is written again in case the actor has lost it."""
        if self._withdrawn:
            raise ServerError(f"{self._id}: found a refresh after withdraw(); announce the server again")
        self._record = record or self._record
        self._registry.call("put", self._id, self._record.as_data(), self._ttl)

    def withdraw(self) -> None:
        """Remove the entry. If the actor cannot be reached, the entry expires."""
        if not self._withdrawn:
            self._withdrawn = True
            with contextlib.suppress(ServerError):
                self._registry.call("remove", self._id)


def ray_registry(config: Any, *, run: str, addresses: Sequence[str] = ()) -> RayRegistry:
    """The target of the ``ray`` registry."""
    return RayRegistry(actor_name(config.ray_actor_name, run))
