"""The servers of a storm: started, struck, replaced when they die, and asked for their state at the end."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archon_core.errors import ServerError
from archon_rollout.served.driver import ServedDriver
from weather.agenda import Agenda
from weather.events import Event
from weather.options import StormOptions
from weather.processes import fork, send
from weather.records import Log, lines_of
from weather.server import ServerPlace, serve_in_storm
from weather.surroundings import late_pause
from weather.task import DTYPE

REPLACE_SECONDS = 0.1
FLAP_SECONDS = 0.8
LATE_SECONDS = 0.1
ANSWER_SECONDS = 2.0
"""Time limit of one question to a server at the end."""


@dataclass
class Slot:
    """The place of a server, taken by one process after the other."""

    number: int
    starts: int = 0
    pid: int = 0
    place: ServerPlace | None = None
    commands: socket.socket | None = None
    port: int = 0
    stopped: bool = False

    @property
    def record(self) -> dict[str, Any] | None:
        """The record of the running server, once it is ready."""
        if not self.pid or self.place is None:
            return None
        try:
            return json.loads(self.place.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


class Fleet:
    """All servers.

    Args:
        options: of the storm.
        folder: of the storm.
        registry: folder of the registry.
        events: the schedule.
        agenda: for what happens later.
        log: of the storm.
    """

    def __init__(
        self,
        options: StormOptions,
        folder: Path,
        registry: Path,
        events: Sequence[Event],
        agenda: Agenda,
        log: Log,
    ) -> None:
        self._options, self._folder, self._registry = options, folder, registry
        self._events, self._agenda, self._log = events, agenda, log
        self._replaces = True
        self.token = secrets.token_urlsafe(16)
        self.slots = [Slot(number) for number in range(options.servers)]

    def start(self) -> None:
        """Start all servers."""
        for slot in self.slots:
            self._start(slot)

    def changed(self, pid: int, status: int) -> None:
        """A child has ended or stopped, as ``os.waitpid`` says."""
        slot = next((slot for slot in self.slots if slot.pid == pid), None)
        if slot is None:
            return
        if os.WIFSTOPPED(status):
            if not slot.stopped:
                self._has_stopped_itself(slot)
            return
        assert slot.commands is not None
        assert slot.place is not None
        code = os.waitstatus_to_exitcode(status)
        self._log.write("died", name=slot.place.name, code=code, reason=self._last_line(slot.place) if code > 0 else "")
        slot.commands.close()
        slot.pid, slot.stopped = 0, False
        if self._replaces:
            self._agenda.after(REPLACE_SECONDS, lambda: self._start(slot))

    def strike(self, event: Event) -> None:
        """Let a fault strike one server."""
        slot = self.slots[event.slot]
        match event.kind:
            case "flap":
                self._flap(slot, event)
            case "late control call":
                self._agenda.after(LATE_SECONDS, lambda: self._send_late_pause(slot, event))
            case _ if slot.pid and slot.commands is not None:
                with contextlib.suppress(OSError):
                    slot.commands.sendall((json.dumps(event.as_data()) + "\n").encode())

    def states(self) -> list[dict[str, Any]]:
        """What every server says of itself."""
        driver = ServedDriver(None, token=self.token)
        found = []
        for slot in self.slots:
            assert slot.place is not None
            answer: dict[str, Any] = {"name": slot.place.name, "answers": False}
            with contextlib.suppress(ServerError):
                record = driver.ready(slot.record["address"], timeout=ANSWER_SECONDS) if slot.record else None
                if record is not None:
                    state = driver.state(record, timeout=ANSWER_SECONDS)
                    answer = {**answer, "answers": True, **state.as_data()}
            found.append(answer)
        return found

    def terminate(self) -> None:
        """Send SIGTERM to all servers, and replace none any more."""
        self._replaces = False
        for slot in self.slots:
            if slot.pid:
                send(slot.pid, signal.SIGTERM)

    @property
    def running(self) -> dict[str, int]:
        """Pid of every server that runs, by name."""
        return {slot.place.name: slot.pid for slot in self.slots if slot.pid and slot.place is not None}

    def _start(self, slot: Slot) -> None:
        if not self._replaces:
            return
        name = f"server-{slot.number}-{slot.starts}"
        place = ServerPlace(
            self._folder, self._registry, name, DTYPE, slot.port, self.token, self._options.drain_seconds
        )
        slot.place, slot.starts, slot.port = place, slot.starts + 1, 0
        slot.commands, theirs = socket.socketpair()
        slot.pid = fork(lambda: serve_in_storm(place, theirs), self._output(place))
        theirs.close()
        self._log.write("start", name=name, pid=slot.pid)

    def _last_line(self, place: ServerPlace) -> str:
        lines = self._output(place).read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else ""

    def _output(self, place: ServerPlace) -> Path:
        return self._folder / "logs" / f"{place.name}.log"

    def _has_stopped_itself(self, slot: Slot) -> None:
        """Continue a server when its event says so."""
        pid, slot.stopped = slot.pid, True
        assert slot.place is not None
        struck = {line["event"] for line in lines_of(slot.place.log) if line["kind"] == "struck"}
        stops = [event for event in self._events if event.number in struck and event.kind.startswith("stop")]
        self._agenda.after(stops[-1].seconds if stops else 0.0, lambda: self._continue(slot, pid))

    def _continue(self, slot: Slot, pid: int) -> None:
        if slot.pid == pid:
            slot.stopped = False
            send(pid, signal.SIGCONT)

    def _flap(self, slot: Slot, event: Event) -> None:
        """Kill a server twice; its successors take its port."""
        if not (record := slot.record):
            return
        self._log.write("struck", event=event.number)
        port = int(record["address"].rpartition(":")[2])

        def kill() -> None:
            if slot.pid:
                slot.port = port
                send(slot.pid, signal.SIGKILL)

        kill()
        self._agenda.after(FLAP_SECONDS, kill)

    def _send_late_pause(self, slot: Slot, event: Event) -> None:
        """A pause whose caller gives up while the server is stopped, and that the server executes when it wakes."""
        record = slot.record
        if not record or slot.stopped:
            return
        pid, slot.stopped = slot.pid, True
        send(pid, signal.SIGSTOP)
        if late_pause(record["address"], record["incarnation"], self.token):
            self._log.write("struck", event=event.number)
        self._agenda.after(event.seconds, lambda: self._continue(slot, pid))
