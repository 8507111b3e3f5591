"""The pool of inference servers: which are in service, and which one gets a request.

One thread watches the servers; see ``pool.watch``. Trainers and clients call from other threads. Newcomers join with a
publication of weights: whoever takes part in it and passes the canary is in service afterwards. Where a folder has the
current version, they are warmed up from it, without waiting for a publication.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from archon_core.contracts.rollout import RolloutConfig
from archon_core.contracts.server_registry import ServerRegistry
from archon_core.contracts.serving import ServerDriver
from archon_core.errors import TrainingError
from archon_core.serving.record import ServerRecord
from archon_rollout.pool.explaining import explain_lack, explain_losses
from archon_rollout.pool.member_sources import MemberSources
from archon_rollout.pool.members import MembershipRules, PoolStatus, TopologyDecision
from archon_rollout.pool.membership import Membership
from archon_rollout.pool.routing import Router
from archon_rollout.pool.status_file import StatusFile
from archon_rollout.pool.stopping import POLL_SECONDS, Stop, StoppedError, never, try_within
from archon_rollout.pool.warming import WarmerLike
from archon_rollout.pool.watch import STOP_SECONDS, Watch

if TYPE_CHECKING:
    from archon_rollout.publication.warm_up import WarmUp


class Pool:
    """The servers of a run. Thread-safe.

    Args:
        registry: lists the servers.
        driver: calls them.
        options: how servers join and leave.
        section: the section of ``options``, for messages.
        clock: seconds, never going back.
        status_file: takes the status after every round.
        stop: whether the user has asked the run to stop.
    """

    def __init__(
        self,
        registry: ServerRegistry | MemberSources,
        driver: ServerDriver,
        options: RolloutConfig,
        *,
        section: str = "rollout",
        clock: Callable[[], float] = time.monotonic,
        status_file: StatusFile | None = None,
        stop: Stop = never,
    ) -> None:
        self._options = options
        self._status_file, self._stop = status_file, stop
        self._section = section
        self._clock = clock
        self._lock = threading.RLock()
        self._writing = threading.Lock()
        cooldown, interval = options.topology_change_cooldown_seconds, options.health_check_interval_seconds
        rules = MembershipRules(options.health_check_failure_threshold, cooldown, retry=max(cooldown, interval))
        self._membership = Membership(rules)
        self._router = Router(driver.capabilities.max_sequences)
        self._decision = TopologyDecision(0)
        self._registry_error = ""
        self._open_to_newcomers = True
        self._group: frozenset[str] = frozenset()
        self._is_switching = False
        sources = registry if isinstance(registry, MemberSources) else MemberSources([registry])
        self._watch = Watch(self, sources, driver, options, clock=clock)

    @property
    def version(self) -> int:
        """The version of the weights of all servers in service."""
        with self._lock:
            return self._membership.version

    @property
    def target_server_addresses(self) -> list[str]:
        """Addresses of the servers that receive weights."""
        with self._lock:
            return [record.address for record in self._decision.members.values()]

    def get_last_topology_change_time(self) -> float | None:
        """Time of the last change of the members, by the pool's clock; ``None`` before the first."""
        with self._lock:
            return self._membership.last_change

    def consume_group_rebuild_request(self) -> bool:
        """Whether the next publication has other receivers than at the last call: servers left, or newcomers may join.
        A newcomer counts after the cooldown only."""
        with self._lock:
            names = frozenset({**self._membership.in_service(), **self._membership.waiting(self._clock())})
            changed, self._group = names != self._group, names
            return changed

    def status(self) -> PoolStatus:
        """What the pool knows now."""
        with self._lock:
            known = self._membership.members.items()
            members = {name: replace(one, retry_at=self._membership.retry_at(one)) for name, one in known}
            outstanding = {name: self._router.load(name) for name in members}
            version = self._membership.version
            return PoolStatus(members, self._decision, self._registry_error, outstanding, version)

    def warm_newcomers_by(self, warmer: WarmerLike) -> None:
        """Let newcomers join between publications from now on."""
        self._watch.warmer = warmer

    def begin_warm_ups(self, version: int) -> tuple[list[ServerRecord], int]:
        """The newcomers to warm up now, and a number for ``warmed``; see ``Membership.begin_warm_ups``."""
        with self._lock:
            chosen = self._membership.begin_warm_ups(version, self._clock())
            return list(chosen.values()), self._membership.n_publications

    def warmed(self, incarnation: str, result: WarmUp, n_publications: int) -> None:
        """A warm-up has ended; see ``Membership.warmed``."""
        with self._lock:
            self._membership.warmed(
                incarnation,
                result.version,
                result.error,
                self._clock(),
                confirmed=result.confirmed,
                n_publications=n_publications,
            )

    def start(self) -> None:
        """Start watching in a thread."""
        self._watch.start()

    def stop(self) -> None:
        """Stop watching. Running probes are cancelled. Idempotent."""
        if self._watch.stop():
            try_within(STOP_SECONDS, partial(self.write_status, ended=True), doing="writing the status of the servers")

    def decide(self) -> TopologyDecision:
        """The servers of the next step, for rank 0 to broadcast. Call once per step.

        Raises:
            Exception: what ended the watching thread.
        """
        self._watch.check()
        with self._lock:
            self._decision = self._membership.decide(self._clock())
            return self._decision

    def receivers(self) -> list[ServerRecord]:
        """The servers of the next publication: those in service, and newcomers."""
        with self._lock:
            return list(self._membership.receivers(self._clock()).values())

    def has_newcomers(self) -> bool:
        """Whether a publication would bring in further servers."""
        with self._lock:
            return bool(self._membership.waiting(self._clock()))

    def is_empty(self) -> bool:
        """Whether no server is in service, not even a suspect one."""
        with self._lock:
            return not self._membership.in_service()

    def switching(self) -> None:
        """Servers switch to new weights from now on until ``committed``. What they answer meanwhile is not confirmed: a
        server may label tokens with a version that other weights made."""
        with self._lock:
            self._is_switching = True

    @property
    def is_switching(self) -> bool:
        """Whether it is open which servers have the weights that they claim."""
        return self._is_switching

    def departure(self, incarnation: str) -> str:
        """Why the requests that a server has should go to others; empty while it may answer them."""
        with self._lock:
            return self._membership.departure(incarnation)

    def committed(self, version: int, outcomes: Mapping[str, str]) -> None:
        """A publication has ended; see ``Membership.committed``."""
        with self._lock:
            self._is_switching = False
            self._membership.committed(version, outcomes, self._clock())

    def failed(self, incarnation: str, reason: str) -> None:
        """A server is out at once: it failed a transfer, a canary, or a call that may still happen."""
        with self._lock:
            if incarnation in self._membership.members:
                self._membership.failed(incarnation, reason, self._clock())

    def wait_for_receivers(self) -> list[ServerRecord]:
        """The servers of the next publication, once there are ``min_servers``. It begins now, and ends with
        ``committed``.

        Raises:
            TrainingError: there are fewer after ``setup_timeout``. Lists which servers left, and why.
            StoppedError: the user stopped the run.
        """
        deadline = self._clock() + self._options.setup_timeout
        while True:
            self._watch.check()
            with self._lock:
                found = self.receivers()
                if len(found) >= self._options.min_servers:
                    self._membership.publishing()
                    return found
            if self._stop():
                raise StoppedError(f"stopped while the run waited for {self._section} servers")
            if self._clock() >= deadline:
                raise TrainingError(self.explain_lack(len(found)))
            self._watch.wait(POLL_SECONDS)

    def acquire(self, *, tokens: int, group: str = "", sequences: int = 1) -> ServerRecord | None:
        """The server of a request, or ``None`` while none in service has room. Every server needs a ``release``."""
        with self._lock:
            servers = self._membership.active()
            chosen = self._router.choose(servers, tokens=tokens, group=group, sequences=sequences)
            return None if chosen is None else servers[chosen]

    def active(self) -> list[ServerRecord]:
        """The servers that get requests."""
        with self._lock:
            return list(self._membership.active().values())

    def answering(self) -> list[str]:
        """Incarnations of the servers without a ``departure``."""
        with self._lock:
            return [name for name in self._membership.members if not self._membership.departure(name)]

    def report_failures(self, failures: Mapping[str, str]) -> None:
        """Requests of another client failed: incarnation -> error. Each counts like a failed probe."""
        with self._lock:
            for name, error in failures.items():
                self._membership.request_failed(name, error, self._clock())

    def release(self, server: ServerRecord, *, tokens: int, error: str = "", sequences: int = 1) -> None:
        """A request has ended. An error counts like a failed probe."""
        with self._lock:
            self._router.finish(server.incarnation, tokens=tokens, sequences=sequences)
            if error:
                self._membership.request_failed(server.incarnation, error, self._clock())

    async def refresh(self) -> None:
        """One round: read the registry and probe all servers."""
        await self._watch.refresh()

    def announced(self, records: Mapping[str, ServerRecord], *, registry_error: str) -> None:
        """Take over the registry's list, by incarnation, and why it could not be read; empty if it could."""
        with self._lock:
            self._registry_error = registry_error
            if not self._open_to_newcomers:
                records = {name: record for name, record in records.items() if name in self._membership.members}
            self._membership.announced(records, self._clock())
            if self._decision.members and not self._options.enable_topology_discovery:
                self._open_to_newcomers = False

    def record_at(self, address: str) -> ServerRecord | None:
        """The server that is known at an address and not out."""
        with self._lock:
            members = self._membership.members.values()
            return next((m.record for m in members if m.record.address == address and m.state != "out"), None)

    def probe_targets(self) -> dict[str, ServerRecord]:
        """The servers to probe, by incarnation."""
        with self._lock:
            return self._membership.in_service()

    def probed(self, results: Mapping[str, str]) -> None:
        """Take over one round of probes; see ``Membership.probed``."""
        with self._lock:
            self._membership.probed(results, self._clock())

    def rested(self) -> None:
        """A round without probes; see ``Membership.rested``."""
        with self._lock:
            self._membership.rested(self._clock())

    def draining(self) -> dict[str, ServerRecord]:
        """The servers that withdrew and may still work on requests, by incarnation."""
        with self._lock:
            return {name: m.record for name, m in self._membership.members.items() if m.drains}

    def write_status(self, *, ended: bool = False) -> None:
        """Write the status file, if there is one."""
        if self._status_file is not None:
            with self._writing:
                self._status_file.write(self.status(), ended=ended)

    def explain_lack(self, found: int) -> str:
        """The error of a run with too few servers: which ones left, and why."""
        return explain_lack(self.status(), found, self._options, section=self._section)

    def explain_losses(self, times: int) -> str:
        """The error of requests during which all servers left again and again."""
        return explain_losses(self.status(), times, self._options, section=self._section)
