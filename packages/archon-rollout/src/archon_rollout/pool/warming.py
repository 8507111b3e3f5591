"""Warms up newcomers apart from publications, each in a thread, so that one that hangs delays nobody."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from archon_core.serving.record import ServerRecord

if TYPE_CHECKING:
    from archon_rollout.pool.pool import Pool
    from archon_rollout.publication.warm_up import WarmUp


class WarmerLike(Protocol):
    """See ``publication.warm_up.Warmer``."""

    @property
    def version(self) -> int | None: ...

    def warm_up(self, server: ServerRecord) -> WarmUp: ...


def start_warm_ups(pool: Pool, warmer: WarmerLike) -> list[threading.Thread]:
    """Start a thread for every newcomer that may be warmed up now; returns them. They end with the limits of their
    calls, and the process does not wait for them."""
    version = warmer.version
    if version is None:
        return []
    newcomers, n_publications = pool.begin_warm_ups(version)
    threads = [
        threading.Thread(target=_warm, args=(pool, warmer, one, n_publications), name="archon-warm-up", daemon=True)
        for one in newcomers
    ]
    for thread in threads:
        thread.start()
    return threads


def _warm(pool: Pool, warmer: WarmerLike, server: ServerRecord, n_publications: int) -> None:
    pool.warmed(server.incarnation, warmer.warm_up(server), n_publications)
