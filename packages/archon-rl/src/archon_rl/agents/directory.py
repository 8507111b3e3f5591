"""``SessionDirectory``: the running sessions by id and key, and the places that wait for agents from outside."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from archon_core.errors import ArchonError
from archon_rl.agents.session import Session


class NoPlaceError(ArchonError):
    """A session that cannot start now, because no sample waits for an agent."""


@dataclass(eq=False)
class WaitingGroup:
    """The samples of a record that wait for agents.

    Attributes:
        record: of the data set.
        sessions: one per sample.
        task: name of the task that the agents chose; empty for none.
        started: samples that have an agent.
    """

    record: Mapping[str, Any]
    sessions: Sequence[Session]
    task: str = ""
    started: int = 0
    _has_agent: dict[str, asyncio.Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._has_agent = {session.id: asyncio.Event() for session in self.sessions}

    @property
    def is_full(self) -> bool:
        """Whether every sample has an agent."""
        return self.started == len(self.sessions)

    def start(self) -> Session:
        """The next sample's session, which now has an agent."""
        session = self.sessions[self.started]
        self.started += 1
        self._has_agent[session.id].set()
        return session

    async def wait_for_agent(self, session: Session) -> None:
        """Wait until an agent has started the session."""
        await self._has_agent[session.id].wait()


class SessionDirectory:
    """The sessions of a collector."""

    def __init__(self) -> None:
        self._by_id: dict[str, Session] = {}
        self._by_key: dict[str, Session] = {}
        self._waiting: list[WaitingGroup] = []

    @contextlib.contextmanager
    def listing(self, session: Session) -> Iterator[None]:
        """List a session in the block, and end it afterwards."""
        self._by_id[session.id] = self._by_key[session.key] = session
        try:
            yield
        finally:
            session.end()
            del self._by_id[session.id], self._by_key[session.key]

    @contextlib.contextmanager
    def waiting(self, group: WaitingGroup) -> Iterator[None]:
        """Let agents from outside start the sessions of a group in the block."""
        self._waiting.append(group)
        try:
            yield
        finally:
            self._waiting.remove(group)

    def find(self, *, key: str, session_id: str = "") -> Session | None:
        """The session of a key; with ``session_id``, only that session."""
        session = self._by_id.get(session_id) if session_id else self._by_key.get(key)
        return session if session is not None and session.accepts(key) else None

    def start(self, task: str = "") -> tuple[Session, Mapping[str, Any]]:
        """Give a waiting sample to an agent: its session and record.

        Args:
            task: sessions with one name are samples of one group; without a name, groups fill up in their order.

        Raises:
            NoPlaceError: no sample waits.
        """
        group = self._group_of(task)
        if group is None:
            raise NoPlaceError(
                f"found no sample that waits for an agent{f' with the task {task!r}' if task else ''}; try again when "
                "the run has trained on earlier ones"
            )
        group.task = group.task or task
        return group.start(), group.record

    def _group_of(self, task: str) -> WaitingGroup | None:
        if not task:
            return next((group for group in self._waiting if not group.task and not group.is_full), None)
        known = next((group for group in self._waiting if group.task == task), None)
        if known is not None:
            return None if known.is_full else known
        return next((group for group in self._waiting if not group.task and not group.started), None)
