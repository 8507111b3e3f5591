"""The servers of several registries as one list, which survives the failure of a registry."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from archon_core.contracts.server_registry import ServerRegistry
from archon_core.errors import ServerError
from archon_core.serving.record import ServerRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """What the registries list.

    Attributes:
        records: of all servers; several may describe the same one.
        error: why a registry could not be read; empty if all could. Its last known entries are in ``records``.
    """

    records: tuple[ServerRecord, ...]
    error: str = ""


GRACE_SECONDS = 20.0
"""After an outage, the time for servers to announce themselves again; an entry is not missed until then."""


class MemberSources:
    """Reads registries one after the other.

    An unreadable registry says nothing about its servers, so they stay listed as they were: probes and calls find out
    which of them live.

    Args:
        registries: of one run.
        kind: kind of server that the run uses; records of other kinds are left out. Empty for any.
        clock: seconds, never going back.
    """

    def __init__(
        self, registries: Sequence[ServerRegistry], *, kind: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sources = tuple(_Source(registry, clock) for registry in registries)
        self._kind = kind
        self._reported = False
        self._strangers: set[str] = set()

    def read(self) -> Listing:
        """Read all registries. Logs when one stops answering, and when all answer again."""
        error = "; ".join(filter(None, [source.read() for source in self._sources]))
        if error and not self._reported:
            logger.warning("cannot read the registry of servers; the known ones stay: %s", error)
        elif self._reported and not error:
            logger.warning("the registry of servers can be read again")
        self._reported = bool(error)
        records = (record for source in self._sources for record in source.known.values())
        return Listing(tuple(record for record in records if self._fits(record)), error)

    def close(self) -> None:
        """Close the registries."""
        for source in self._sources:
            source.registry.close()

    def _fits(self, record: ServerRecord) -> bool:
        if not self._kind or record.kind in ("", self._kind):
            return True
        if record.incarnation not in self._strangers:
            self._strangers.add(record.incarnation)
            logger.warning(
                "server %s is left out: it is of the kind %s, this run uses %s", record.address, record.kind, self._kind
            )
        return False


class _Source:
    """One registry, and its entries when it was last read."""

    def __init__(self, registry: ServerRegistry, clock: Callable[[], float]) -> None:
        self.registry = registry
        self.known: Mapping[str, ServerRecord] = {}
        self._clock = clock
        self._is_out = False
        self._grace_until = -math.inf

    def read(self) -> str:
        """Update ``known``; returns why that failed."""
        try:
            found = self.registry.list()
        except (ServerError, OSError) as error:  # OSError of a registry that somebody else wrote
            self._is_out = True
            return str(error)
        if self._is_out:
            self._is_out, self._grace_until = False, self._clock() + GRACE_SECONDS
        self.known = {**self.known, **found} if self._clock() < self._grace_until else found
        return ""
