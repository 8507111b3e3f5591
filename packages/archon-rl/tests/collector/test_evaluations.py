"""Evaluations in the collector: which groups run beside one another, and what an error does."""

from __future__ import annotations

import asyncio

import pytest
from test_schedules import Servers

from archon_core.errors import ServerError
from archon_rl.collector.batches import BatchRule, Pace
from archon_rl.collector.group import Group
from archon_rl.collector.service import CollectorService
from archon_rl.collector.states import read_settled
from archon_rl.collector.window import GroupWindow, Settled


class Samplers:
    """Groups that end when the test says so."""

    def __init__(self) -> None:
        self.ends: dict[str, asyncio.Future[None]] = {}

    async def training(self, number: int) -> Settled[Group]:
        return await self._sample(f"group {number}", number)

    async def held_out(self, place: int) -> Settled[Group]:
        return await self._sample(f"held out {place}", place)

    async def _sample(self, name: str, number: int) -> Settled[Group]:
        self.ends[name] = asyncio.get_running_loop().create_future()
        try:
            await self.ends[name]
        finally:
            del self.ends[name]
        return Settled(Group((float(number),), (1,), (False,), 2))

    async def end(self, name: str, error: Exception | None = None) -> list[str]:
        """End a group; returns the names of the groups still in progress."""
        if error is None:
            self.ends[name].set_result(None)
        else:
            self.ends[name].set_exception(error)
        return await self.running()

    async def running(self) -> list[str]:
        for _ in range(5):
            await asyncio.sleep(0)
        return [*self.ends]


async def started(pace: Pace, batch_size: int = 2) -> tuple[CollectorService, Samplers]:
    samplers = Samplers()
    window: GroupWindow[Group] = GroupWindow(BatchRule(batch_size), pace)
    service = CollectorService(window, samplers.training, Servers(), samplers.held_out)
    await service._on_publish(step=0, version=0, servers=[], answering=[])
    return service, samplers


def test_held_out_groups_take_the_places_that_become_free_and_training_goes_on_behind_them():
    async def run() -> None:
        service, samplers = await started(Pace(9, 2, 40))
        assert await samplers.running() == ["group 0", "group 1"]
        call = asyncio.create_task(service._on_evaluate(n_records=3, timeout=60.0))
        assert await samplers.running() == ["group 0", "group 1"], "groups in progress are not interrupted"
        assert await samplers.end("group 1") == ["group 0", "held out 0"]
        assert await samplers.end("held out 0") == ["group 0", "held out 1"]
        assert await samplers.end("group 0") == ["held out 1", "held out 2"]
        assert await samplers.end("held out 1") == ["held out 2", "group 2"], "none waits any more"
        assert not call.done()
        await samplers.end("held out 2")
        groups = read_settled(await call)
        assert {place: one.group.rewards for place, one in groups.items()} == {0: (0.0,), 1: (1.0,), 2: (2.0,)}
        state = await service._on_state()
        assert (state["step"], state["first"], [number for number, *_ in state["settled"]]) == (0, 0, [1, 0])
        assert service._load()["finished"] == 2, "training groups alone"
        await service._cancel()

    asyncio.run(run())


def test_an_evaluation_goes_on_over_calls_and_the_next_one_begins_anew():
    async def run() -> None:
        service, samplers = await started(Pace(0, 4, 4))
        assert await service._on_evaluate(n_records=2, timeout=0.0) is None
        assert await samplers.running() == ["group 0", "group 1", "held out 0", "held out 1"]
        await samplers.end("held out 1")
        assert await service._on_evaluate(n_records=2, timeout=0.0) is None
        await samplers.end("held out 0")
        assert [place for place, *_ in await service._on_evaluate(n_records=2, timeout=0.0)] == [0, 1]
        assert await service._on_evaluate(n_records=1, timeout=0.0) is None
        assert await samplers.running() == ["group 0", "group 1", "held out 0"]
        await service._cancel()
        assert await samplers.running() == [], "the end of the service cancels held-out groups, too"

    asyncio.run(run())


def test_an_error_of_a_held_out_group_is_an_error_of_the_call():
    async def run() -> None:
        service, samplers = await started(Pace(0, 4, 4))
        call = asyncio.create_task(service._on_evaluate(n_records=2, timeout=60.0))
        await samplers.running()
        await samplers.end("held out 1", ServerError("no server answers"))
        with pytest.raises(ServerError, match="no server answers"):
            await call
        await service._cancel()

    asyncio.run(run())
