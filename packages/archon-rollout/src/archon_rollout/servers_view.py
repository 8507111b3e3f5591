"""What ``archon servers`` shows: the registry's entries, the servers' own answers, and the trainer's opinion."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from archon_core.contracts.rollout import RolloutConfig
from archon_core.contracts.server_registry import ServerRegistry
from archon_core.contracts.serving import ServerDriver, ServerDriverSpec
from archon_core.contracts.weight_transport import WeightTransportSpec
from archon_core.errors import ArchonError, ServerError
from archon_core.plugins import registry
from archon_core.serving.record import ServerRecord, ServerState
from archon_core.serving.run_token import TOKEN, read_token
from archon_rollout.pool.status_file import MemberStatus, TrainerStatus, read_status
from archon_rollout.registries.addresses import AddressRegistry
from archon_rollout.registries.run_place import RunPlace
from archon_rollout.sampling_status import SamplingStatus, read_sampling

CALL_SECONDS = 3.0
"""Time limit of each call to a server."""

LATE_INTERVALS = 3
"""Intervals after which a trainer's status counts as old."""


@dataclass(frozen=True)
class ServerRow:
    """One server.

    Attributes:
        address: ``host:port``.
        incarnation: of its start; empty for an address that does not answer.
        kind: such as ``served``; empty if unknown.
        pool: its state in the trainer's pool; empty if no trainer knows it.
        server: ``generating``, ``idle``, ``paused``, ``updating`` or ``no weights``, as it answers itself; ``silent``
            without an answer.
        version: of the weights, as the server answers, or else as the trainer or the registry knows it.
        tokens_per_second: of the last seconds; ``None`` if unknown.
        running: number of requests in progress; ``None`` if unknown.
        started_at: seconds since the epoch; 0 if unknown.
        error: the last error: of the pool, or of the query.
        refusals: consecutive attempts to join the trainer's servers that failed.
        retry_seconds: time until the trainer lets it try again; ``None`` if it need not.
    """

    address: str
    incarnation: str
    kind: str
    pool: str
    server: str
    version: int | None
    tokens_per_second: float | None
    running: int | None
    started_at: float
    error: str
    refusals: int = 0
    retry_seconds: float | None = None


@dataclass(frozen=True)
class ServersView:
    """All that is known of a run's servers.

    Attributes:
        registry: name of the registry.
        run: name of the run.
        registry_error: why the registry cannot be read; empty if it can.
        trainer: the status that the run's trainer wrote; ``None`` without one.
        servers: one row per incarnation.
        sampling: the last step of asynchronous sampling; ``None`` without one.
    """

    registry: str
    run: str
    registry_error: str
    trainer: TrainerStatus | None
    servers: tuple[ServerRow, ...]
    sampling: SamplingStatus | None = None

    def as_data(self) -> dict[str, Any]:
        """The view as JSON values."""
        trainer = self.trainer
        return {
            "registry": self.registry,
            "run": self.run,
            "registry_error": self.registry_error,
            "trainer": None
            if trainer is None
            else {
                "version": trainer.version,
                "epoch": trainer.epoch,
                "age_seconds": round(trainer.age, 1),
                "current": is_current(trainer),
                "ended": trainer.ended,
                "registry_error": trainer.registry_error,
            },
            "servers": [asdict(row) for row in self.servers],
            "sampling": None if self.sampling is None else asdict(self.sampling),
        }


def is_current(status: TrainerStatus) -> bool:
    """Whether a trainer writes its status."""
    return not status.ended and status.age < LATE_INTERVALS * max(status.interval, 1.0)


class Observer:
    """Looks at the servers of one run, again and again. Needs only what users of the run may read.

    Args:
        run: the run.
        timeout: of each call to a server, in seconds.
    """

    def __init__(self, run: RunPlace, *, timeout: float = CALL_SECONDS) -> None:
        self._run, self._timeout = run, timeout
        self._registries: list[ServerRegistry] = [run.discovery.open()]
        if run.discovery.addresses and run.discovery.spec.entries != "addresses":
            self._registries.append(AddressRegistry(run.discovery.addresses))
        self._token = ""

    def look(self) -> ServersView:
        """The servers now.

        Raises:
            ConfigError: the run's token cannot be read.
            ServerError: the trainer's status is damaged.
        """
        self._token = os.environ.get(TOKEN) or read_token(self._run.servers)
        trainer = read_status(self._run.servers)
        records, registry_error = self._listed()
        members = {one.incarnation: one for one in trainer.members} if trainer is not None else {}
        if trainer is not None and not is_current(trainer):
            members = {name: member for name, member in members.items() if name in records}
        known = {name: _record_of(member) for name, member in members.items()} | records
        with ThreadPoolExecutor(max(1, len(known))) as threads:
            rows = threads.map(lambda item: self._row(item[1], members.get(item[0])), known.items())
        config = self._run.discovery.config
        found = _distinct([*rows])
        sampling = read_sampling(self._run.folder)
        return ServersView(config.type, self._run.discovery.run, registry_error, trainer, found, sampling)

    def _listed(self) -> tuple[dict[str, ServerRecord], str]:
        """The registries' entries, by incarnation, or by address without one."""
        found: dict[str, ServerRecord] = {}
        errors = []
        for one in self._registries:
            try:
                found |= {record.incarnation or record.address: record for record in one.list().values()}
            except ServerError as error:
                errors.append(str(error))
        return found, "; ".join(errors)

    def _row(self, record: ServerRecord, member: MemberStatus | None) -> ServerRow:
        opinion = member.reason or member.refused if member is not None else ""
        row = ServerRow(
            address=record.address,
            incarnation=record.incarnation,
            kind=record.kind,
            pool=member.state if member is not None else "",
            server="silent",
            version=record.version if record.incarnation else None,
            tokens_per_second=None,
            running=None,
            started_at=record.started_at,
            error=opinion,
            refusals=member.refusals if member is not None else 0,
            retry_seconds=member.retry_seconds if member is not None else None,
        )
        try:
            answered, state = self._query(record)
        except ArchonError as error:
            return replace(row, error=opinion or str(error))
        if record.incarnation not in ("", state.incarnation):
            return replace(row, error=opinion or f"another incarnation answers there: {state.incarnation}")
        return replace(
            row,
            incarnation=state.incarnation,
            kind=answered.kind,
            server=_activity(state),
            version=state.version,
            tokens_per_second=state.tokens_per_second,
            running=state.running,
            started_at=answered.started_at or record.started_at,
        )

    def _query(self, record: ServerRecord) -> tuple[ServerRecord, ServerState]:
        """The server's record and state. Raises ServerError if it does not answer."""
        spec = registry().get(ServerDriverSpec, record.kind or self._run.kind)
        transport = self._run.weight_transport
        if transport is not None:
            transport = registry().get(WeightTransportSpec, transport).name
        # Where a driver asks for a server's state depends on how the server receives weights.
        driver: ServerDriver = spec.load()(RolloutConfig(weight_transport=transport), token=self._token)
        if not record.incarnation:
            found = driver.ready(record.address, timeout=self._timeout)
            if found is None:
                raise ServerError(f"server {record.address}: no answer in {self._timeout:g} s")
            record = replace(found, address=record.address)
        return record, driver.state(record, timeout=self._timeout)


def _record_of(member: MemberStatus) -> ServerRecord:
    return ServerRecord(
        member.address, member.incarnation, member.kind, version=member.version, started_at=member.started_at
    )


def _activity(state: ServerState) -> str:
    if state.paused:
        return "paused"
    if state.version < 0:
        return "no weights"
    if state.updating is not None:
        return "updating"
    return "generating" if state.running else "idle"


def _distinct(rows: Sequence[ServerRow]) -> tuple[ServerRow, ...]:
    """One row per incarnation: an address may be announced and configured."""
    found: dict[str, ServerRow] = {}
    for row in rows:
        found.setdefault(row.incarnation or row.address, row)
    return tuple(sorted(found.values(), key=lambda row: (row.address, row.started_at)))
