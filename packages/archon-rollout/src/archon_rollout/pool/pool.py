"""The pool of inference servers: watches them, and sends each request to one in service.

One thread watches: it reads the registry and, independently, probes every server with a request for one token, because
the health route of a server answers also while its engine hangs. Trainers and clients call from other threads.
Newcomers join with a publication of weights: whoever takes part in it and passes the canary is in service afterwards.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.contracts.server_registry import ServerRegistry
from archon_core.contracts.serving import ServerDriver
from archon_core.errors import ServerError, TrainingError
from archon_core.serving.record import ServerRecord
from archon_rollout.pool.member_sources import MemberSources
from archon_rollout.pool.members import Member, MembershipRules, TopologyDecision
from archon_rollout.pool.membership import Membership
from archon_rollout.pool.routing import Router
from archon_rollout.pool.status_file import StatusFile
from archon_rollout.pool.stopping import Stop, StoppedError, never

POLL_SECONDS = 0.05

PROBE_TOKEN = 0
PROBE_PREFIX = "probe-"


@dataclass(frozen=True)
class PoolStatus:
    """What the pool knows, for ``archon servers`` and messages.

    Attributes:
        members: every known server, by incarnation.
        decision: the last decision.
        registry_error: why the registry could not be read last time; empty if it could.
        outstanding: outstanding tokens per incarnation.
        version: of the weights in service.
    """

    members: Mapping[str, Member]
    decision: TopologyDecision
    registry_error: str
    outstanding: Mapping[str, int]
    version: int = 0


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
        self._sources = registry if isinstance(registry, MemberSources) else MemberSources([registry])
        self._driver, self._options = driver, options
        self._status_file, self._stop = status_file, stop
        self._section = section
        self._clock = clock
        self._lock = threading.RLock()
        self._writing = threading.Lock()
        cooldown, interval = options.topology_change_cooldown_seconds, options.health_check_interval_seconds
        rules = MembershipRules(options.health_check_failure_threshold, cooldown, retry=max(cooldown, interval))
        self._membership = Membership(rules)
        self._router = Router()
        self._decision = TopologyDecision(0)
        self._registry_error = ""
        self._open_to_newcomers = True
        self._group: frozenset[str] = frozenset()
        self._is_switching = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._crash: BaseException | None = None

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

    def start(self) -> None:
        """Start watching in a thread."""
        assert self._thread is None, "the pool is watching already"
        self._thread = threading.Thread(target=self._run, name="archon-pool", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching. Running probes end with their time limit. Idempotent."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._sources.close()
            self._write_status(ended=True)

    def decide(self) -> TopologyDecision:
        """The servers of the next step, for rank 0 to broadcast. Call once per step.

        Raises:
            Exception: what ended the watching thread.
        """
        self._check_thread()
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
        """The servers of the next publication, once there are ``min_servers``.

        Raises:
            TrainingError: there are fewer after ``setup_timeout``. Lists which servers left, and why.
            StoppedError: the user stopped the run.
        """
        deadline = self._clock() + self._options.setup_timeout
        while True:
            self._check_thread()
            found = self.receivers()
            if len(found) >= self._options.min_servers:
                return found
            if self._stop():
                raise StoppedError(f"stopped while the run waited for {self._section} servers")
            if self._clock() >= deadline:
                raise TrainingError(self.explain_lack(len(found)))
            self._stopping.wait(POLL_SECONDS)

    def acquire(self, *, tokens: int, group: str = "") -> ServerRecord | None:
        """The server of a request, or ``None`` without one in service. Every server needs a ``release``."""
        with self._lock:
            servers = self._membership.active()
            if not servers:
                return None
            return servers[self._router.choose(servers, tokens=tokens, group=group)]

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

    def release(self, server: ServerRecord, *, tokens: int, error: str = "") -> None:
        """A request has ended. An error counts like a failed probe."""
        with self._lock:
            self._router.finish(server.incarnation, tokens=tokens)
            if error:
                self._membership.request_failed(server.incarnation, error, self._clock())

    async def refresh(self) -> None:
        """One round: read the registry and probe all servers."""
        await self._read_registry()
        await self._probe_servers()

    async def _probe_servers(self) -> None:
        await asyncio.gather(self._probe_all(), self._watch_draining())
        await asyncio.to_thread(self._write_status)

    def _write_status(self, *, ended: bool = False) -> None:
        if self._status_file is not None:
            with self._writing:
                self._status_file.write(self.status(), ended=ended)

    def _check_thread(self) -> None:
        if self._crash is not None:
            raise self._crash

    def _run(self) -> None:
        try:
            asyncio.run(self._watch())
        except BaseException as error:  # a pool that nobody watches must not look healthy
            self._crash = error

    async def _watch(self) -> None:
        # A registry or an address that hangs must not delay the probes of other servers.
        await asyncio.gather(self._repeat(self._read_registry), self._repeat(self._probe_servers))

    async def _repeat(self, action: Callable[[], Awaitable[None]]) -> None:
        """Run an action in every interval until the pool stops."""
        while not self._stopping.is_set():
            await action()
            until = self._clock() + self._options.health_check_interval_seconds
            while not self._stopping.is_set() and self._clock() < until:
                await asyncio.sleep(POLL_SECONDS)

    async def _read_registry(self) -> None:
        listing = await asyncio.to_thread(self._sources.read)
        found = await asyncio.gather(*(self._identified(record) for record in listing.records))
        records = {record.incarnation: record for record in found if record is not None}
        with self._lock:
            self._registry_error = listing.error
            known = self._membership.members
            if not self._open_to_newcomers:
                records = {name: record for name, record in records.items() if name in known}
            self._membership.announced(records, self._clock())
            if self._decision.members and not self._options.enable_topology_discovery:
                self._open_to_newcomers = False
        await asyncio.to_thread(self._write_status)

    async def _identified(self, record: ServerRecord) -> ServerRecord | None:
        """The record with its incarnation, which a registry of addresses does not know."""
        if record.incarnation:
            return record
        timeout = self._options.health_check_timeout_seconds
        try:
            found = await asyncio.to_thread(self._driver.ready, record.address, timeout=timeout)
        except ServerError:
            found = None
        if found is not None:
            return replace(found, address=record.address)  # a server on 0.0.0.0 does not know how others reach it
        with self._lock:  # no answer: the probes decide about a server that is in service
            members = self._membership.members.values()
            return next((m.record for m in members if m.record.address == record.address and m.state != "out"), None)

    async def _probe_all(self) -> None:
        if not self._options.enable_health_monitor:
            return
        with self._lock:
            targets = {n: m.record for n, m in self._membership.members.items() if m.state in ("active", "suspect")}
        errors = await asyncio.gather(*(self._probe(record) for record in targets.values()))
        with self._lock:
            self._membership.probed(dict(zip(targets, errors, strict=True)), self._clock())

    async def _watch_draining(self) -> None:
        """Find out whether servers that withdrew still work on their requests. They accept no others, also no probe."""
        with self._lock:
            targets = {n: m.record for n, m in self._membership.members.items() if m.drains}
        timeout = self._options.health_check_timeout_seconds
        calls = (asyncio.to_thread(self._driver.state, record, timeout=timeout) for record in targets.values())
        errors = await asyncio.gather(*(_error_of(call, timeout) for call in calls))
        for name, error in zip(targets, errors, strict=True):
            if error:
                self.failed(name, f"it withdrew, and does not answer: {error}")

    async def _probe(self, server: ServerRecord) -> str:
        timeout = self._options.health_check_timeout_seconds
        request = GenerationRequest((PROBE_TOKEN,), GenerationConfig(max_new_tokens=1, greedy=True), (0,))
        # Servers refuse an id that is still in use, by another pool or by a probe that timed out here.
        call = self._driver.generate(server, request, request_id=f"{PROBE_PREFIX}{uuid.uuid4().hex}", timeout=timeout)
        return await _error_of(call, timeout)

    def explain_lack(self, found: int) -> str:
        """The error of a run with too few servers: which ones left, and why."""
        options, section = self._options, self._section
        lines = [
            f"{section} servers: found {found} after {options.setup_timeout:g} s; allowed is at least "
            f"{section}.min_servers={options.min_servers}; start servers, or raise {section}.setup_timeout"
        ]
        with self._lock:
            for member in self._membership.members.values():
                if member.state not in ("active", "suspect"):
                    reason = f": {member.reason}" if member.reason else ""
                    lines.append(f"  {member.record.address} is {member.state}{reason}")
            if self._registry_error:
                lines.append(f"  the registry cannot be read: {self._registry_error}")
        return "\n".join(lines)


async def _error_of(call: Awaitable[object], timeout: float) -> str:
    """Why a call failed; empty if it did not."""
    try:
        await asyncio.wait_for(call, timeout)
    except ServerError as error:
        return str(error)
    except TimeoutError:
        return f"no answer in {timeout:g} s"
    return ""
