"""Reward processes that are simulated in the test's process, so that seeds decide in which order things happen.

A simulated process has the real ends of socket and call counter. It moves by one step whenever the pool looks at the
clock: between any two of the pool's actions, it may begin a call, answer, hang or end.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import socket
from collections import Counter

from archon_rl.rewards.messages import CallCounter, Receiver, send

FINGERPRINT = {"digest": "d", "about": "reward"}


class World:
    """All simulated processes, and the clock that moves them.

    Attributes:
        n_called: how often each call was begun, by its place.
        groups: all processes that were ever started.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.groups: list[SimulatedGroup] = []
        self.n_called: Counter[str] = Counter()
        self.n_starts_that_fail = 0

    def clock(self) -> float:
        self.now += self.random.choice((0.0, 0.01, 0.3))
        for group in self.groups:
            for _ in range(self.random.randrange(4)):
                group.step()
        return self.now

    def start(self, command, *, held, descriptors, environment) -> SimulatedGroup:
        self.groups.append(SimulatedGroup(self, json.loads(command[-1])))
        return self.groups[-1]


class SimulatedGroup:
    """Stands for ``ProcessGroup``: a worker whose calls do what their completions say."""

    def __init__(self, world: World, arguments) -> None:
        self._world = world
        self.channel = socket.socket(fileno=os.dup(arguments["descriptor"]))
        self.channel.setblocking(False)
        self._file = os.dup(arguments["counter"])
        self._counter, self._receiver = CallCounter(self._file), Receiver(self.channel)
        self._calls: list[tuple[str, bytes]] = []
        self._held: list[float] = []
        self._current: tuple[str, str] | None = None
        self._ready = False
        self._n_begun = 0
        self._left = 0
        self.exit_code: int | None = None
        self.killed = False

    @property
    def has_ended(self) -> bool:
        return self.exit_code is not None

    def wait(self, seconds: float) -> bool:
        return self.has_ended

    def kill(self) -> int | None:
        code = self.exit_code
        for _ in range(self._world.random.randrange(3)):  # what it does until the signal arrives
            self.step()
        self.killed = True
        self.end(-9)
        return code

    def end(self, code: int) -> None:
        if self.exit_code is None:
            self.exit_code = code
            self.channel.close()
            os.close(self._file)

    def step(self) -> None:
        """Do the next thing, if there is one."""
        if self.has_ended:
            return
        if not self._ready:
            if self._world.n_starts_that_fail and self._world.random.random() < 0.3:
                self._world.n_starts_that_fail -= 1
                return self.end(1)
            self._ready = True
            self._reply({"fingerprint": FINGERPRINT})
        elif self._current is not None:
            self._work(*self._current)
        elif self._calls:
            self._begin(*self._calls.pop(0))
        else:
            for message in self._receiver.arrived()[0]:
                self._calls += pickle.loads(message)
        return None

    def _begin(self, place: str, pickled: bytes) -> None:
        _, completion, record = pickle.loads(pickled)
        assert record["place"] == place
        self._n_begun += 1
        self._counter.write(self._n_begun)
        self._world.n_called[place] += 1
        self._current = (place, completion)
        self._left = self._world.random.randrange(6)

    def _work(self, place: str, completion: str) -> None:
        if completion == "hang":
            return
        if self._left:
            self._left -= 1
            return
        if completion == "end":
            return self.end(3)
        self._current = None
        self._held.append(float(place.partition(":")[2]))
        if completion == "end after":  # the call is answered, or its answer is still held; neither is to blame
            self._flush()
            return self.end(4)
        if not self._calls or self._world.random.random() < 0.5:
            self._flush()
        return None

    def _flush(self) -> None:
        held, self._held = self._held, []
        self._reply({"first": self._n_begun - len(held), "outcomes": held})

    def _reply(self, reply) -> None:
        try:
            send(self.channel, json.dumps(reply).encode())
        except OSError:
            self.end(1)
