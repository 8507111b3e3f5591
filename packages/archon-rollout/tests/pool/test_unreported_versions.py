"""Tokens of servers that report no weight versions are labelled with the oldest version that they may have."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest
from test_pool import World

from archon_core.contracts.rollout import Completion, GenerationConfig, GenerationRequest


def silent_world() -> World:
    world = World("a")
    world.driver.capabilities = replace(world.driver.capabilities, token_versions=False)
    generate = world.driver.generate

    async def without_versions(*arguments, **options) -> list[Completion]:
        return [replace(one, versions=()) for one in await generate(*arguments, **options)]

    world.driver.generate = without_versions
    world.begin()
    return world


def ask(world: World, n_tokens: int = 3) -> asyncio.Task[list[Completion]]:
    request = GenerationRequest((7, 7, 7), GenerationConfig(max_new_tokens=n_tokens), (5,))
    return asyncio.ensure_future(world.client.generate(request))


def test_the_version_of_the_pool_stands_for_that_of_a_silent_server(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    world = silent_world()
    assert world.pool.version == 1

    async def run() -> None:
        for _ in range(2):
            [completion] = await ask(world)
            assert completion.versions == (1, 1, 1)

    asyncio.run(run())
    [message] = caplog.messages
    assert "reports no weight versions; tokens are labelled with the version at the beginning" in message


def test_a_request_that_a_publication_overtakes_has_the_version_before_it() -> None:
    world = silent_world()
    server = world.driver.servers["a"]
    server.hangs = True

    async def run() -> list[Completion]:
        asking = ask(world)
        await asyncio.sleep(0.02)
        world.pool.switching()
        world.publish()
        assert world.pool.version == 2
        server.hangs = False
        return await asking

    [completion] = asyncio.run(run())
    assert completion.versions == (1, 1, 1)


def test_each_part_of_a_continued_completion_has_its_version() -> None:
    world = silent_world()
    world.driver.servers["a"].aborts_after = 2

    async def run() -> list[Completion]:
        return await ask(world, 5)

    [completion] = asyncio.run(run())
    assert len(completion.token_ids) == len(completion.versions) == 5
