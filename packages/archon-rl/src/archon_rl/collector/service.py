"""The collector's loop: keeps as many groups in progress as may start, and answers the trainer's calls."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from archon_core.contracts.serving import RemoteClient
from archon_core.errors import TrainingError
from archon_core.serving.record import ServerRecord
from archon_rl.collector.group import Group
from archon_rl.collector.messages import error_data, packed, receive_async
from archon_rl.collector.states import batch_data, state_data
from archon_rl.collector.stopwatch import Stopwatch
from archon_rl.collector.window import GroupWindow, Settled

logger = logging.getLogger(__name__)

Sample = Callable[[int], Awaitable[Settled[Group]]]


class CollectorService:
    """Serves one trainer.

    Args:
        window: which groups may start, and which step takes them.
        sample: samples the group of a number.
        client: gets the servers that the trainer names.
    """

    def __init__(self, window: GroupWindow[Group], sample: Sample, client: RemoteClient) -> None:
        self._window, self._sample, self._client = window, sample, client
        self._tasks: dict[int, asyncio.Task[Settled[Group]]] = {}
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
        deadline = time.monotonic() + timeout
        self._waiting.run(True)
        while True:
            if self._error is not None:
                raise self._error
            batch = self._window.take()
            if batch is not None:
                self._waiting.run(False)
                self._start()  # consumed groups leave the queue
                return batch_data(batch) | self._load()
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return None

    async def _on_state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return state_data(self._window.state())

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
        """Start all groups that may start."""
        if self._closing:
            return
        while (number := self._window.start()) is not None:
            task = asyncio.create_task(self._sample(number), name=f"group-{number}")
            self._tasks[number] = task
            task.add_done_callback(lambda done, number=number: self._finish(number, done))
        self._sampling.run(self._window.n_running > 0)

    def _finish(self, number: int, task: asyncio.Task[Settled[Group]]) -> None:
        del self._tasks[number]
        if task.cancelled() and self._closing:
            return
        error = _error_of(number, task)
        if error is not None:
            logger.error("group %d failed", number, exc_info=error)
            self._error = self._error or error
        else:
            self._window.settle(number, task.result())
            self._n_finished += 1
            self._start()
        self._changed.set()

    async def _cancel(self) -> None:
        self._closing = True  # a group that has just finished must not start another
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _error_of(number: int, task: asyncio.Task[Any]) -> BaseException | None:
    """Why a group has no result. Nobody may wait for a group that will never be settled."""
    if task.cancelled():
        return TrainingError(f"group {number}: its task was cancelled while the run goes on; report this as a bug")
    return task.exception()
