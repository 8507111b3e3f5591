"""The collector's loop: keeps as many groups in progress as may start, and answers the trainer's calls.

Training groups and the held-out groups of an evaluation share ``max_concurrent_rollouts``, the load that the user
allows on servers and agents. The trainer waits for an evaluation, so held-out groups take the places that become free.
Training groups in progress go on, because an interruption would waste their tokens, and others start as soon as no
held-out group waits for a place, because servers would idle while the last sessions of an evaluation run. The window
never learns of held-out groups, so they count neither as drawn nor as consumed. Staleness is unchanged: nothing is
published meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from archon_core.contracts.serving import RemoteClient
from archon_core.errors import TrainingError
from archon_core.serving.record import ServerRecord
from archon_rl.collector.evaluation import Evaluation
from archon_rl.collector.group import Group
from archon_rl.collector.messages import error_data, packed, receive_async
from archon_rl.collector.states import batch_data, settled_data, state_data
from archon_rl.collector.stopwatch import Stopwatch
from archon_rl.collector.window import GroupWindow, Settled

logger = logging.getLogger(__name__)

T = TypeVar("T")

Sample = Callable[[int], Coroutine[Any, Any, Settled[Group]]]


class CollectorService:
    """Serves one trainer.

    Args:
        window: which groups may start, and which step takes them.
        sample: samples the group of a number.
        client: gets the servers that the trainer names.
        sample_held_out: samples the group of a held-out record by its place; ``None`` for a run that does not evaluate
            here.
    """

    def __init__(
        self,
        window: GroupWindow[Group],
        sample: Sample,
        client: RemoteClient,
        sample_held_out: Sample | None = None,
    ) -> None:
        self._window, self._sample, self._client = window, sample, client
        self._sample_held_out = sample_held_out
        self._evaluation: Evaluation | None = None
        self._tasks: set[asyncio.Task[Settled[Group]]] = set()
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._closing = False
        self._sampling, self._waiting, self._n_finished = Stopwatch(), Stopwatch(), 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer calls until the trainer calls ``stop`` or is gone."""
        try:
            while True:
                try:
                    call = await receive_async(reader)
                except EOFError:
                    return
                name = call.pop("call")
                if name == "stop":
                    writer.write(packed({"ok": None}))
                    await writer.drain()
                    return
                try:
                    answer = packed({"ok": await getattr(self, f"_on_{name}")(**call)})
                except Exception as error:  # also of an answer that cannot be packed
                    answer = packed(error_data(error))
                writer.write(answer)
                await writer.drain()
        finally:
            await self._cancel()

    async def _on_publish(self, step: int, version: int, servers: list[dict[str, Any]], answering: list[str]) -> None:
        """The servers hold the weights after ``step`` steps, which have ``version``."""
        self._update(version, servers, answering)
        self._window.published(step)
        self._start()

    async def _on_servers(self, version: int, servers: list[dict[str, Any]], answering: list[str]) -> dict[str, str]:
        """The servers in service may have changed. Answers the failures since the last call."""
        self._update(version, servers, answering)
        return dict(self._client.failures())

    async def _on_switching(self) -> None:
        """The servers switch to new weights until the next ``publish``."""
        self._client.switching()

    async def _on_take(self, timeout: float) -> dict[str, Any] | None:
        """The batch of the next step; ``None`` if it is not complete after ``timeout`` seconds."""
        self._waiting.run(True)
        batch = await self._wait_for(self._window.take, timeout)
        if batch is None:
            return None
        self._waiting.run(False)
        self._start()  # consumed groups leave the queue
        return batch_data(batch) | self._load()

    async def _on_evaluate(self, n_records: int, timeout: float) -> list[Any] | None:
        """The groups of the first ``n_records`` held-out records; ``None`` if they are incomplete after ``timeout``
        seconds. The first call starts the evaluation, and the call that gets the groups ends it."""
        if self._evaluation is None:
            self._evaluation = Evaluation(n_records)
            self._start()
        groups = await self._wait_for(self._evaluation.groups, timeout)
        if groups is None:
            return None
        self._evaluation = None
        return settled_data(groups)

    async def _on_state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return state_data(self._window.state())

    async def _wait_for(self, look: Callable[[], T | None], timeout: float) -> T | None:
        """What ``look`` finds after groups have settled; ``None`` after ``timeout`` seconds. Raises a group's error."""
        deadline = time.monotonic() + timeout
        while True:
            if self._error is not None:
                raise self._error
            found = look()
            if found is not None:
                return found
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return None

    def _update(self, version: int, servers: list[dict[str, Any]], answering: list[str]) -> None:
        self._client.update([ServerRecord.from_data(one) for one in servers], version, answering)

    def _load(self) -> dict[str, Any]:
        """Metrics of the moment, and of the time since the last batch."""
        n_finished, self._n_finished = self._n_finished, 0
        return {
            "running": self._window.n_running,
            "waiting": self._window.n_waiting,
            "finished": n_finished,
            "busy_seconds": self._sampling.lap(),
            "waited_seconds": self._waiting.lap(),
            "server_idle": self._client.idle_share(),
        }

    def _start(self) -> None:
        """Start all groups that may start, held-out ones first."""
        if self._closing:
            return
        if self._evaluation is None or self._start_held_out(self._evaluation):
            beside = 0 if self._evaluation is None else self._evaluation.n_running
            while (number := self._window.start(beside=beside)) is not None:
                self._run(f"group {number}", self._sample(number), partial(self._settle, number))
        self._sampling.run(self._window.n_running > 0)

    def _start_held_out(self, evaluation: Evaluation) -> bool:
        """Start held-out groups; returns whether all have started."""
        assert self._sample_held_out is not None, "the trainer asks a collector that has the held-out records"
        while self._window.n_running + evaluation.n_running < self._window.pace.max_concurrent:
            place = evaluation.start()
            if place is None:
                break
            settle = partial(evaluation.settle, place)
            self._run(f"held-out group {place}", self._sample_held_out(place), settle)
        return evaluation.has_started_all

    def _settle(self, number: int, outcome: Settled[Group]) -> None:
        self._window.settle(number, outcome)
        self._n_finished += 1

    def _run(
        self, name: str, sampling: Coroutine[Any, Any, Settled[Group]], settle: Callable[[Settled[Group]], None]
    ) -> None:
        """Sample a group in a task, and settle it at its end."""
        task = asyncio.create_task(sampling, name=name)
        self._tasks.add(task)
        task.add_done_callback(partial(self._finish, settle))

    def _finish(self, settle: Callable[[Settled[Group]], None], task: asyncio.Task[Settled[Group]]) -> None:
        self._tasks.remove(task)
        if task.cancelled() and self._closing:
            return
        error = _error_of(task)
        if error is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)
            self._error = self._error or error
        else:
            settle(task.result())
            self._start()
        self._changed.set()

    async def _cancel(self) -> None:
        self._closing = True  # a group that has just finished must not start another
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _error_of(task: asyncio.Task[Any]) -> BaseException | None:
    """Why a group has no result. Nobody may wait for a group that will never be settled."""
    if task.cancelled():
        name = task.get_name()
        return TrainingError(f"{name}: its task was cancelled while the run goes on; report this as a bug")
    return task.exception()
