"""Machines without Ray: the actor's code runs in the test's process, on a thread per call."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from archon_ray.machine import Machine
from archon_ray.remote import LostError


class FutureAnswer:
    """Implements ``remote.Answer``."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def ready(self) -> bool:
        return self._future.done()

    def result(self) -> Any:
        return self._future.result()


@dataclass
class NearMachine:
    """Implements ``remote.RemoteMachine``.

    Attributes:
        machine: the actor.
        fault: ``lost`` lets every call fail, ``silent`` lets none be answered.
    """

    machine: Machine
    fault: str = ""
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4))

    def ask(self, method: str, *arguments: Any) -> FutureAnswer:
        if self.fault == "silent":
            return FutureAnswer(Future())
        if self.fault == "lost":
            future: Future[Any] = Future()
            future.set_exception(LostError("the actor died"))
            return FutureAnswer(future)
        return FutureAnswer(self._threads.submit(getattr(self.machine, method), *arguments))


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds machines; their processes are ended afterwards."""
    for name in ("OMP_NUM_THREADS", "ARCHON_NODE_ADDRESS", "RAY_ADDRESS"):  # an actor changes its environment
        monkeypatch.setenv(name, "before")
    built: list[NearMachine] = []

    def build(name: str = "a") -> NearMachine:
        built.append(NearMachine(Machine(f"id-{name}", "127.0.0.1", "127.0.0.1:6379")))
        return built[-1]

    yield build
    for one in built:
        one.machine.kill()
