"""The thread of a server that keeps its entry in a registry."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable

from archon_core.contracts.server_registry import Announcement, ServerRegistry
from archon_core.errors import ServerError
from archon_core.serving.record import ServerRecord

logger = logging.getLogger(__name__)

REFRESHES = 3
"""Refreshes within one time to live: two may be lost."""

FIRST_RETRY_SECONDS = 0.5
"""Time until the second attempt after a failure; doubled for each further one, up to the time between refreshes."""


class Announcer(threading.Thread):
    """Announces a server, refreshes its entry, and withdraws it at the end.

    An unreachable registry does not disturb the server: the thread logs the first failure, tries again with growing
    pauses, and logs when it succeeds.

    Args:
        registry: closed by this thread.
        record: the server's record, with the version in use.
        ttl: seconds after which the entry expires without a refresh.
        place: of the registry, for log lines.
        first_retry: seconds until the second attempt after a failure.
    """

    def __init__(
        self,
        registry: ServerRegistry,
        record: Callable[[], ServerRecord],
        *,
        ttl: float,
        place: str,
        first_retry: float = FIRST_RETRY_SECONDS,
    ) -> None:
        super().__init__(name="archon-announcer", daemon=True)
        self._registry, self._record = registry, record
        self._ttl, self._place, self._first_retry = ttl, place, first_retry
        self._announcement: Announcement | None = None
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Withdraw the entry, in the thread. Returns at once; ``join`` waits. Idempotent."""
        self._stopping.set()

    def run(self) -> None:
        """The thread's body."""
        interval = self._ttl / REFRESHES
        failures, announced = 0, False
        while not self._stopping.is_set():
            error = self._try_once()
            if error is None:
                if failures or not announced:
                    logger.info("announced in %s", self._place)
                failures, announced = 0, True
                self._stopping.wait(interval)
            else:
                if not failures:
                    logger.warning("cannot announce this server, trying again: %s", error)
                self._stopping.wait(min(interval, self._first_retry * 2 ** min(failures, 16)))
                failures += 1
        if self._announcement is not None:
            self._announcement.withdraw()
            logger.info("withdrawn from %s", self._place)
        self._registry.close()

    def _try_once(self) -> str | None:
        """Announce or refresh; returns why that failed."""
        record = self._record()
        try:
            if self._announcement is None:
                self._announcement = self._registry.announce(entry_id(record), record, self._ttl)
            else:
                self._announcement.refresh(record)
        except ServerError as error:
            return str(error)
        except Exception as error:  # a registry's bug must not take the server out of service silently
            return f"{type(error).__name__}: {error}"
        return None


def entry_id(record: ServerRecord) -> str:
    """The id of a server's entry: its address, so that a restarted server replaces its old entry at once.

    >>> entry_id(ServerRecord("10.0.0.1:8000", "5f0c", "served"))
    '10.0.0.1-8000'
    """
    return re.sub(r"[^A-Za-z0-9._]+", "-", record.address).strip("-")
