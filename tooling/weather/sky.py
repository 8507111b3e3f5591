"""Makes one storm: starts servers and trainer ranks, lets faults strike step by step, and records what is left behind.

The process has one thread, because it forks. It has loaded the engine already, so a server starts in a fraction of a
second.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import time
from pathlib import Path
from typing import Any

from weather.agenda import Agenda
from weather.events import COMMON_FAULTS, Event, plan_storm
from weather.fleet import Fleet
from weather.options import StormOptions
from weather.processes import STACK_SIGNAL, adopt_orphans, children_after, fork, segments, send
from weather.records import Log, lines_of
from weather.surroundings import FullMemory, private_shared_memory, unreadable_registry
from weather.task import MODEL
from weather.trainer import TrainerPlace, train_in_storm

POLL_SECONDS = 0.02
READY_SECONDS = 3.0
"""Time that a step waits for replaced servers before faults strike."""

STOP_SECONDS = 10.0
"""Time for servers to end after SIGTERM, beyond the time in which they finish requests."""

END_SECONDS = 20.0
"""Time for the last servers to answer; and for helper processes to end after the process that they serve, because a
store first lets its members notice."""


class Sky:
    """One storm.

    Args:
        options: see there.
        folder: for records; must be empty.
    """

    def __init__(self, options: StormOptions, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._registry = folder / "registry"
        self._events = plan_storm(options)
        self._log = Log(folder / "sky.jsonl")
        self._agenda = Agenda()
        self._fleet = Fleet(options, folder, self._registry, self._events, self._agenda, self._log)
        self._ranks: dict[int, int] = {}
        self._failed_ranks: dict[int, int] = {}
        self._trainer, self._theirs = socket.socketpair()
        self._heard = b""
        self._waiting: tuple[int, float] | None = None

    def run(self) -> None:
        """Make the storm. Everything that there is to check is in the folder afterwards."""
        adopt_orphans()
        self._memory = FullMemory(private=private_shared_memory())
        before = segments()
        self._log.write("storm", options=self._options.as_data(), events=[e.as_data() for e in self._events])
        (self._folder / "records").mkdir()
        self._registry.mkdir()
        (self._folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
        deadline = time.monotonic() + self._options.longest_storm
        self._fleet.start()
        self._start_ranks()
        try:
            while self._ranks and time.monotonic() < deadline:
                self._turn()
            hanging = [] if self._failed_ranks else sorted(self._ranks)
            self._log.write("ranks", hanging=hanging, failed=self._failed_ranks)
        finally:
            self._end()
        left = segments() - before
        if not self._memory.private:  # others have segments there, too
            runs = {line["run"] for line in lines_of(self._folder / "trainer-0.jsonl") if line["kind"] == "transport"}
            left = {name for name in left if any(run in name for run in runs)}
        self._log.write("end", processes=children_after(END_SECONDS), segments=sorted(left))

    def _turn(self) -> None:
        """One round: what is due, what children did, and what the trainer wants."""
        self._agenda.run_due()
        self._collect_children()
        self._hear_trainer()
        if self._failed_ranks:
            for pid in self._ranks.values():  # they wait for the failed one in a collective
                send(pid, signal.SIGKILL)

    def _start_ranks(self) -> None:
        place = TrainerPlace(self._options, self._folder, self._registry, self._fleet.token)
        for rank in range(self._options.ranks):
            sky = self._theirs if rank == 0 else None
            output = self._folder / "logs" / f"rank-{rank}.log"
            self._ranks[rank] = fork(lambda rank=rank, sky=sky: train_in_storm(rank, place, sky), output)
        self._theirs.close()

    def _collect_children(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            rank = next((rank for rank, of_rank in self._ranks.items() if of_rank == pid), None)
            if rank is None:
                self._fleet.changed(pid, status)
            elif not os.WIFSTOPPED(status):
                del self._ranks[rank]
                if code := os.waitstatus_to_exitcode(status):
                    self._failed_ranks[rank] = code

    def _pause(self) -> None:
        """One round at the end: what is due, and what children did."""
        self._agenda.run_due()
        self._collect_children()
        time.sleep(POLL_SECONDS)

    # What the trainer wants

    def _hear_trainer(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._trainer, selectors.EVENT_READ)
            if ready.select(POLL_SECONDS):
                content = self._trainer.recv(2**16)
                self._heard += content
                if not content:  # rank 0 has ended
                    time.sleep(POLL_SECONDS)
        while b"\n" in self._heard:
            line, _, self._heard = self._heard.partition(b"\n")
            order = json.loads(line)
            if order["kind"] == "prepare":
                self._waiting = (order["version"], time.monotonic() + READY_SECONDS)
            else:
                self._answer(events=self._strike(order["version"]))
        if self._waiting is not None:
            self._prepare(*self._waiting)

    def _answer(self, **order: Any) -> None:
        with contextlib.suppress(OSError):  # rank 0 has ended
            self._trainer.sendall((json.dumps(order) + "\n").encode())

    def _of_version(self, version: int) -> list[Event]:
        return [event for event in self._events if event.version == version]

    def _prepare(self, version: int, deadline: float) -> None:
        """Tell the trainer which servers the step will strike, once they are there."""
        slots = {event.slot for event in self._of_version(version) if event.slot >= 0} or range(self._options.servers)
        records = [self._fleet.slots[number].record for number in slots]
        if all(records) or time.monotonic() >= deadline:
            self._waiting = None
            self._answer(targets=[record["incarnation"] for record in records if record])

    def _strike(self, version: int) -> list[dict[str, Any]]:
        """Let the faults of a step strike; returns the faults that the trainer carries out."""
        of_trainer = []
        for event in self._of_version(version):
            if event.slot >= 0:
                self._fleet.strike(event)
                continue
            assert event.kind in COMMON_FAULTS
            if event.kind == "unreadable registry":
                self._agenda.after(event.seconds, unreadable_registry(self._registry, event.variant))
                self._log.write("struck", event=event.number)
                continue
            injected = not self._memory.private
            if event.kind == "full memory" and not injected:
                self._memory.fill()
                self._agenda.after(event.seconds, self._memory.free)
            of_trainer.append({**event.as_data(), "injected": injected})
        return of_trainer

    # The end

    def _end(self) -> None:
        """Ask every server for its state, then end all processes; what does not end is killed, and recorded."""
        self._agenda.run_all()  # continues stopped servers, and mends the surroundings
        deadline = time.monotonic() + END_SECONDS
        states = self._fleet.states()
        while not all(state["answers"] for state in states) and time.monotonic() < deadline:
            # A fault may strike as late as this: what it stopped is continued, and what it killed is replaced.
            self._pause()
            states = self._fleet.states()
        for state in states:
            self._log.write("state", **state)
        self._fleet.terminate()
        deadline = time.monotonic() + self._options.drain_seconds + STOP_SECONDS
        while self._fleet.running and time.monotonic() < deadline:
            self._pause()
        self._log.write("servers", hanging=list(self._fleet.running))
        for pid in [*self._fleet.running.values(), *self._ranks.values()]:
            send(pid, STACK_SIGNAL)
            time.sleep(0.2)
            send(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
