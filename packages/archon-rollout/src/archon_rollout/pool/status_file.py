"""``servers/status.json`` of a run folder: what the trainer's pool thinks of each server, for ``archon servers``."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archon_core.errors import ServerError
from archon_core.serving.wire import fields_of, to_data

if TYPE_CHECKING:
    from archon_rollout.pool.members import Member, PoolStatus

NAME = "status.json"


@dataclass(frozen=True)
class MemberStatus:
    """One server.

    Attributes:
        address: ``host:port``.
        incarnation: of its start.
        kind: such as ``served``.
        state: in the pool.
        seconds: since it entered the state.
        version: of the last weights that it has confirmed.
        failures: consecutive failed probes.
        reason: why it is suspect or out; empty otherwise.
        announced: whether the registry lists it.
        outstanding: tokens that its requests may still generate.
        started_at: seconds since the epoch; 0 if unknown.
        refusals: consecutive attempts to join that failed.
        refused: why the last one failed; empty after none.
        retry_seconds: time until it may join again; ``None`` if it is not out, or not listed.
    """

    address: str
    incarnation: str
    kind: str
    state: str
    seconds: float
    version: int
    failures: int = 0
    reason: str = ""
    announced: bool = True
    outstanding: int = 0
    started_at: float = 0.0
    refusals: int = 0
    refused: str = ""
    retry_seconds: float | None = None


@dataclass(frozen=True)
class TrainerStatus:
    """A pool, as its trainer wrote it.

    Attributes:
        written_at: seconds since the epoch, by the trainer's clock.
        interval: seconds between two writings.
        version: of the weights in service.
        epoch: of the topology.
        registry_error: why the registry could not be read; empty if it could.
        ended: whether the trainer has stopped its pool.
        members: all known servers.
    """

    written_at: float
    interval: float
    version: int
    epoch: int
    registry_error: str = ""
    ended: bool = False
    members: tuple[MemberStatus, ...] = field(default=())

    @property
    def age(self) -> float:
        """Seconds since it was written; 0 if the trainer's clock is ahead."""
        return max(0.0, time.time() - self.written_at)


class StatusFile:
    """Writes a pool's status; does nothing if the folder cannot be written, because training does not need the file.

    Args:
        folder: ``servers`` in the run folder.
        interval: seconds between two writings.
        clock: the pool's clock.
    """

    def __init__(self, folder: Path, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = folder / NAME
        self._interval = interval
        self._clock = clock

    def write(self, status: PoolStatus, *, ended: bool = False) -> None:
        """Replace the file."""
        now = self._clock()
        members = tuple(
            MemberStatus(
                address=member.record.address,
                incarnation=name,
                kind=member.record.kind,
                state=member.state,
                seconds=round(now - member.since, 1),
                version=member.record.version,
                failures=member.failures,
                reason=member.reason,
                announced=member.announced,
                outstanding=status.outstanding.get(name, 0),
                started_at=member.record.started_at,
                refusals=member.refusals,
                refused=member.refused,
                retry_seconds=_retry_seconds(member, now),
            )
            for name, member in status.members.items()
        )
        data = TrainerStatus(
            time.time(), self._interval, status.version, status.decision.epoch, status.registry_error, ended, members
        )
        temporary = self._path.with_name(f".{NAME}.{os.getpid()}")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(to_data(data)), encoding="utf-8")
            temporary.replace(self._path)


def _retry_seconds(member: Member, now: float) -> float | None:
    if member.state != "out" or not member.announced:
        return None
    return round(max(0.0, member.retry_at - now), 1)


def read_status(folder: Path) -> TrainerStatus | None:
    """The status in a folder; ``None`` if no trainer has written one.

    Raises:
        ServerError: the file is damaged, or of another version.
    """
    path = folder / NAME
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ServerError(f"{path}: cannot read the trainer's status: {error}; delete the file") from error
    found = fields_of(TrainerStatus, data, written_at=float, interval=float, version=int, epoch=int, members=list)
    found["members"] = tuple(MemberStatus(**fields_of(MemberStatus, member)) for member in found.get("members", ()))
    return TrainerStatus(**found)
