"""The faults of one server: they arrive on a socket, wait for their moment, and strike once."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time

from weather.events import Event
from weather.records import Log

SIGNALS = {
    "die before prepare": signal.SIGKILL,
    "die in transfer": signal.SIGKILL,
    "die before commit": signal.SIGKILL,
    "die in generation": signal.SIGKILL,
    "stop in transfer": signal.SIGSTOP,
    "stop in generation": signal.SIGSTOP,
    "terminate": signal.SIGTERM,
}
"""Faults that are a signal to the process itself."""


class Faults:
    """The faults that wait in one server. Thread-safe.

    Args:
        log: of the server.

    Attributes:
        log: of the server.
        lying: whether a planted lie makes the server label tokens wrongly now.
        clock_offset: seconds that the server's wall clock is wrong by.
    """

    def __init__(self, log: Log) -> None:
        self.log = log
        self.lying = False
        self.clock_offset = 0.0
        self._lock = threading.Lock()
        self._waiting: list[Event] = []

    def take(self, *kinds: str, at: int | None = None) -> Event | None:
        """The first waiting event of these kinds whose moment has come; it strikes now.

        Args:
            kinds: kinds of faults that can strike here.
            at: number of the bucket or token; an event waits for its own. ``None`` for events that wait for none.
        """
        with self._lock:
            for event in self._waiting:
                if event.kind in kinds and (at is None or at >= event.at):
                    self._waiting.remove(event)
                    self.log.write("struck", event=event.number)
                    return event
        return None

    def signal_self(self, *kinds: str, at: int | None = None) -> None:
        """Send the signal of a fault to this process, if its moment has come."""
        event = self.take(*kinds, at=at)
        if event is not None:
            number = SIGNALS[event.kind]
            os.kill(os.getpid(), number)
            if number is signal.SIGSTOP:
                time.sleep(0.05)  # other threads may run on for a moment

    def listen(self, commands: socket.socket) -> None:
        """Take in the events that arrive on a socket, in a thread."""
        threading.Thread(target=self._listen, args=(commands,), name="storm-commands", daemon=True).start()

    def _listen(self, commands: socket.socket) -> None:
        with commands.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                event = Event(**json.loads(line))
                if event.kind == "clock skew":
                    self.clock_offset += event.seconds
                    self.log.write("struck", event=event.number)
                else:
                    with self._lock:
                        self._waiting.append(event)
