"""Warms up one server from the folder of the version in use, while all others generate or take part in a publication.

The protocol is that of a publication: the server gets a plan and a notice per file, computes checksums of what it
holds, switches, and says its version. Then it completes the canary. The trainer's ranks are busy, so its tokens must be
those of another server, of which the trainer has computed the log-probabilities.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass

from archon_core.contracts.serving import ServerDriver
from archon_core.errors import ArchonError, ServerError
from archon_core.serving.record import ServerRecord
from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan, receipt_problem
from archon_rollout.publication.attempt import reconcile_limit, settled_state
from archon_rollout.publication.canary import Canary, ask_server, canary_problem
from archon_rollout.publication.stored import StoredVersion, StoredVersions
from archon_rollout.transports.disk import folder_setup

logger = logging.getLogger(__name__)


class UnconfirmedError(ArchonError):
    """The server took the weights, but only the trainer's ranks could say whether its tokens are right."""


@dataclass(frozen=True)
class WarmUp:
    """The result of a warm-up.

    Attributes:
        version: of the weights that it was about.
        error: why the server must not get requests; empty if it may.
        confirmed: false if the error says nothing against the server, which a publication can tell.
    """

    version: int
    error: str = ""
    confirmed: bool = True


class Warmer:
    """Warms up servers; may be called from several threads.

    Args:
        driver: calls the servers.
        stored: has the version in use.
        canary: the fixed prompt; ``None`` for no canary.
        timeout: limit of each call, in seconds.
        publisher: id of the publisher of the stored versions; see ``UpdatePlan``.
    """

    def __init__(
        self,
        driver: ServerDriver,
        stored: StoredVersions,
        canary: Canary | None,
        *,
        timeout: float,
        publisher: str,
    ) -> None:
        self._driver, self._stored, self._canary, self._timeout = driver, stored, canary, timeout
        self._publisher = publisher

    @property
    def version(self) -> int | None:
        """The version that newcomers can get; ``None`` for none."""
        stored = self._stored.current
        return None if stored is None else stored.manifest.version

    def warm_up(self, server: ServerRecord) -> WarmUp:
        """Give a server the version in use. Never raises because of a server."""
        stored, start = self._stored.current, time.perf_counter()
        if stored is None:
            return WarmUp(-1, "no version is stored", confirmed=False)
        version = stored.manifest.version
        try:
            self._update(server, stored)
            self._check_canary(server, stored)
        except UnconfirmedError as error:
            return WarmUp(version, str(error), confirmed=False)
        except Exception as error:  # a driver talks to foreign programs; whatever it raises concerns one server
            self._undo(server, version)
            reason = str(error) if isinstance(error, ArchonError) else f"{type(error).__name__}: {error}"
            logger.warning("server %s failed its warm-up with version %d: %s", server.address, version, reason)
            return WarmUp(version, f"warm-up: {reason}")
        seconds = time.perf_counter() - start
        logger.info("server %s was warmed up with version %d in %.2f s", server.address, version, seconds)
        return WarmUp(version)

    def _update(self, server: ServerRecord, stored: StoredVersion) -> None:
        driver, timeout, manifest = self._driver, self._timeout, stored.manifest
        setup = folder_setup(stored.folder, final=stored.folder)
        plan = UpdatePlan(manifest, "disk", setup, server.incarnation, self._publisher)
        driver.begin_update(server, plan, timeout=timeout)
        for notice in stored.notices:
            self._check(driver.receive_bucket(server, notice, timeout=timeout), notice, server)
        receipt = driver.verify_update(server, manifest, timeout=timeout)
        self._check(receipt, UpdatePlan(manifest, ""), server)
        driver.commit_update(server, manifest.version, timeout=timeout)
        found = settled_state(driver, server, timeout=reconcile_limit(timeout)).version
        if found != manifest.version:
            raise ServerError(f"it answered that it switched, but it is at version {found}, not {manifest.version}")

    def _check(self, receipt: Receipt, expected: UpdatePlan | BucketNotice, server: ServerRecord) -> None:
        if self._driver.capabilities.checksums and (
            problem := receipt_problem(receipt, expected, incarnation=server.incarnation)
        ):
            raise ServerError(problem)

    def _check_canary(self, server: ServerRecord, stored: StoredVersion) -> None:
        if self._canary is None or stored.answers is None:
            return
        completion = ask_server(self._driver, server, self._canary, timeout=self._timeout)
        version = stored.manifest.version
        expected = stored.answers.get(completion.token_ids)
        if expected is None:
            raise UnconfirmedError("it completes the canary with other tokens than the servers of the last publication")
        if problem := canary_problem(completion, expected, version=version, tolerance=stored.tolerance):
            raise ServerError(problem)

    def _undo(self, server: ServerRecord, version: int) -> None:
        """Abort the update, so that a late commit is refused, and resume the server if it is paused."""
        limit = reconcile_limit(self._timeout)
        for call in (
            lambda: self._driver.abort_update(server, version, timeout=limit),
            lambda: settled_state(self._driver, server, timeout=limit),
        ):
            with suppress(Exception):
                call()
