"""Adapters that servers of other programs load apart from the weights that they adapt, from folders in PEFT's format.

Every version is an adapter with another name, as in AReaL. A request names the adapter that it starts with and keeps
it, so all tokens of a completion have one version, and a server need not pause for a new one.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archon_core.contracts.rollout import Completion
    from archon_core.serving.manifest import TensorEntry
    from archon_core.serving.record import ServerRecord

FOLDER = "adapter"
"""Folder of the adapters inside that of a version."""

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's names of the files in it."""

_TENSORS = "base_model.model."


def versions_in_use(max_staleness: int) -> int:
    """The number of versions, counted back from the newest, whose adapters unfinished requests may use.

    A request that starts with version v belongs to the step after version ``v + max_staleness`` at the latest, and that
    step waits for it. One more, because processes beside the trainer see a new version later.

    Args:
        max_staleness: ``rollout.max_head_offpolicyness``.
    """
    return max_staleness + 2


def is_adapter(name: str) -> bool:
    """Whether a tensor belongs to an adapter, by the prefix of PEFT's names."""
    return name.startswith(_TENSORS)


def adapter_name(version: int) -> str:
    """The name of a version's adapter on a server."""
    return f"archon-v{version}"


@dataclass
class _Server:
    adapted: str = ""
    received: str = ""
    versions: deque[int] = field(default_factory=deque)


class AdapterVersions:
    """What a driver knows about the adapters on its servers, by the incarnation of a server.

    Args:
        kept: versions that stay loaded; see ``versions_in_use``.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._servers: dict[str, _Server] = {}

    def receive(self, server: ServerRecord, tensors: Iterable[TensorEntry]) -> None:
        """Note the tensors of a version that a server is about to load, with their checksums."""
        entries = tuple(tensors)
        known = self._servers.setdefault(server.incarnation, _Server())
        known.received = ""
        if any(is_adapter(entry.name) for entry in entries):
            text = "".join(f"{entry.name} {entry.checksum};" for entry in entries if not is_adapter(entry.name))
            known.received = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def are_received(self, server: ServerRecord) -> bool:
        """Whether the version that a server is about to load has adapters apart."""
        return bool(self._of(server).received)

    def needs_adapted(self, server: ServerRecord) -> bool:
        """Whether the server must load the weights that are adapted: at first, and if they have changed."""
        known = self._of(server)
        return known.received != known.adapted

    def has_loaded_adapted(self, server: ServerRecord) -> None:
        """The server has the weights that were received. Adapters of others are not used any more."""
        known = self._of(server)
        known.adapted = known.received

    def has_loaded(self, server: ServerRecord, version: int) -> tuple[int, ...]:
        """The server has the adapter of a version, which new requests will name. Returns the versions to unload."""
        versions = self._of(server).versions
        versions.append(version)
        return tuple(versions.popleft() for _ in range(len(versions) - self._kept))

    def forget(self, server: ServerRecord, version: int) -> bool:
        """Whether the server has an adapter of that version, from before a trainer resumed. No request names it any
        more, and it must be unloaded before another."""
        versions = self._of(server).versions
        if version not in versions:
            return False
        versions.remove(version)
        return True

    def version_for(self, server: ServerRecord, *, expected: bool) -> int | None:
        """The version whose adapter a new request names; ``None`` for the server's own weights.

        Args:
            server: its version counts in processes beside the trainer, whose drivers load no adapters.
            expected: whether the run publishes adapters apart.
        """
        versions = self._of(server).versions
        if versions:
            return versions[-1]
        return server.version if expected and server.version >= 0 else None

    def _of(self, server: ServerRecord) -> _Server:
        return self._servers.get(server.incarnation, _Server())


def labelled(completion: Completion, version: int | None) -> Completion:
    """The completion with the version of its adapter: a server's label is that of its newest adapter."""
    if version is None:
        return completion
    return replace(completion, versions=(version,) * len(completion.token_ids))
