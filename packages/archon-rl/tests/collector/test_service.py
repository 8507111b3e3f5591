"""The collector's service at its end."""

from __future__ import annotations

import asyncio

from test_schedules import Servers

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
