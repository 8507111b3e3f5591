"""Requests in progress on servers that leave, and answers that arrive while servers switch weights."""

from __future__ import annotations

import asyncio

import pytest
from test_pool import World

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_core.errors import ServerError

REQUEST = GenerationRequest((7, 7, 7), GenerationConfig(max_new_tokens=4), (5,))


class Asking:
    """A request on ``first``, which hangs, and whatever happens meanwhile."""

    def __init__(self, world: World, first: str = "a") -> None:
        self.world = world
        self.server = world.driver.servers[first]
        self.server.hangs = True

    async def __aenter__(self) -> asyncio.Task:
        task = asyncio.create_task(self.world.client.generate(REQUEST))
        while not self.server.requests:
            await asyncio.sleep(0.001)
        return task

    async def __aexit__(self, *error: object) -> None:
        self.server.hangs = False


def test_requests_of_a_server_that_probes_put_out_go_to_another_one() -> None:
    async def run() -> None:
        world = World("ab")
        await world.pool.refresh()
        world.publish()
        async with Asking(world) as task:
            for _ in range(2):
                await world.pool.refresh()
            [completion] = await asyncio.wait_for(task, 20)
        assert completion.token_ids == (3, 4, 5, 6)
        assert len(world.driver.servers["b"].requests) == 1

    asyncio.run(run())


def test_a_server_that_withdraws_finishes_its_requests_unless_it_dies() -> None:
    async def run(*, dies: bool) -> None:
        world = World("ab")
        await world.pool.refresh()
        world.publish()
        server = world.driver.servers["a"]
        async with Asking(world) as task:
            world.announcements["a"].withdraw()
            world.clock.now = 100.0  # long enough to be forgotten
            server.dead = dies
            for _ in range(3):
                await world.pool.refresh()
                assert list(world.pool.decide().members) == ["b"]
                await asyncio.sleep(0.06)
            if not dies:
                assert not world.driver.servers["b"].requests
                server.hangs = False
            [completion] = await asyncio.wait_for(task, 20)
        assert completion.token_ids == (3, 4, 5, 6)
        assert len(world.driver.servers["b"].requests) == dies
        server.dead = True
        await world.pool.refresh()
        world.clock.now = 200.0
        world.start("c")  # a change, with which old members are forgotten
        await world.pool.refresh()
        world.publish()
        assert "a" not in world.pool.status().members

    asyncio.run(run(dies=False))
    asyncio.run(run(dies=True))


def test_an_answer_during_the_switch_counts_only_if_its_server_passes_the_publication() -> None:
    async def run(*, fails: bool, withdrawn: bool = False) -> None:
        world = World("ab")
        await world.pool.refresh()
        world.publish()
        server = world.driver.servers["a"]
        async with Asking(world) as task:
            receivers = [one.incarnation for one in world.pool.receivers()]
            world.pool.switching()
            if withdrawn:
                world.announcements["a"].withdraw()
                await world.pool.refresh()
            server.hangs = False
            await asyncio.sleep(0.15)
            assert not task.done(), "it is not known which weights made the tokens"
            errors = {"a": "canary: it has other weights"} if fails else {}
            world.pool.committed(1, {name: errors.get(name, "") for name in receivers})
            [completion] = await asyncio.wait_for(task, 20)
        assert completion.token_ids == (3, 4, 5, 6)
        assert len(world.driver.servers["b"].requests) == fails

    asyncio.run(run(fails=False))
    asyncio.run(run(fails=True))
    asyncio.run(run(fails=True, withdrawn=True))


def test_an_answer_that_is_never_confirmed_is_an_error_at_the_deadline() -> None:
    world = World("a", request_retries=0, request_timeout=0.3)
    world.begin()
    world.pool.switching()
    with pytest.raises(ServerError, match="it is not known whether it has the published weights"):
        world.ask()
