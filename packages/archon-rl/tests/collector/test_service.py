"""The collector's service: its end, and groups that fail."""

from __future__ import annotations

import asyncio
import socket

import pytest
from test_schedules import Link, Servers

from archon_core.errors import TrainingError
from archon_rl.collector.batches import BatchRule, Pace
from archon_rl.collector.group import Group
from archon_rl.collector.service import CollectorService
from archon_rl.collector.window import GroupWindow, Settled


def test_a_group_that_ends_with_the_service_starts_no_other():
    started = []

    async def sample(number: int) -> Settled[Group]:
        started.append(number)
        return Settled(Group.without((), {}, 0), "left out")

    async def run() -> None:
        window: GroupWindow[Group] = GroupWindow(BatchRule(4), Pace(9, 1, 40))
        service = CollectorService(window, sample, Servers())
        await service._on_publish(step=0, version=0, servers=[], answering=[])
        await asyncio.sleep(0)  # the group has ended, and the service does not know yet
        assert started == [0]
        await service._cancel()
        await asyncio.sleep(0.01)

    asyncio.run(run())
    assert started == [0]


def test_a_group_whose_task_is_cancelled_is_an_error_of_the_next_call():
    async def sample(number: int) -> Settled[Group]:
        raise asyncio.CancelledError

    async def run() -> None:
        window: GroupWindow[Group] = GroupWindow(BatchRule(1), Pace(1, 1, 4))
        service = CollectorService(window, sample, Servers())
        await service._on_publish(step=0, version=0, servers=[], answering=[])
        await service._on_take(timeout=5.0)

    with pytest.raises(TrainingError, match="group 0: its task was cancelled while the run goes on"):
        asyncio.run(run())


def test_an_answer_that_cannot_be_packed_is_an_error_of_its_call_and_the_service_goes_on():
    async def sample(number: int) -> Settled[Group]:
        return Settled(Group.without((), {"rollout": object()}, 0), "left out")

    async def run() -> None:
        ours, theirs = socket.socketpair()
        service = CollectorService(GroupWindow(BatchRule(1), Pace(1, 1, 4)), sample, Servers())
        serving = asyncio.create_task(service.serve(*await asyncio.open_connection(sock=theirs)))
        link = Link(ours)
        await link.call("publish", step=0, version=0, servers=[], answering=[])
        with pytest.raises(TrainingError, match=r"the collector failed \(TypeError: can not serialize 'object' object"):
            await asyncio.wait_for(link.call("take", timeout=5.0), 3.0)  # a service that has ended answers nothing
        assert await link.call("servers", version=0, servers=[], answering=[]) == {}
        link.close()
        await serving

    asyncio.run(run())
