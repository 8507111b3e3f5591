"""Servers get fewer sequences than they decode at once, so that probes do not wait; other requests wait in line."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fake_servers import FakeDriver
from test_pool import World

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_core.serving.record import sequences_beside_probes
from archon_rollout.pool.client import PoolClient
from archon_rollout.pool.remote import PushedServers
from archon_rollout.pool.routing import Router


def limited(monkeypatch, names: str, max_sequences: int, **options) -> World:
    """Servers of limited size, in service."""
    monkeypatch.setattr(FakeDriver, "capabilities", replace(FakeDriver.capabilities, max_sequences=max_sequences))
    world = World(names, **options)
    world.begin()
    return world


def request(number: int, n_samples: int = 1) -> GenerationRequest:
    config = GenerationConfig(n_samples=n_samples, max_new_tokens=2)
    return GenerationRequest((number,), config, tuple(range(n_samples)))


def test_a_batch_has_room_for_probes() -> None:
    assert [sequences_beside_probes(batch) for batch in (1, 2, 16, 256)] == [1, 1, 15, 248]


def test_a_full_server_gets_nothing_and_a_large_request_gets_an_empty_one() -> None:
    router = Router(max_sequences=4)
    assert router.choose("ab", tokens=1, sequences=9) == "a"
    assert [router.choose("ab", tokens=1, sequences=2) for _ in range(3)] == ["b", "b", None]
    router.finish("a", tokens=1, sequences=9)
    assert router.choose("ab", tokens=1, sequences=2) == "a"
    assert router.choose("", tokens=1) is None


def test_the_servers_of_a_collector_are_limited_too() -> None:
    servers = PushedServers(max_sequences=2)
    servers.update([world_record("a")], 0)
    assert [servers.acquire(tokens=1, sequences=1) is not None for _ in range(3)] == [True, True, False]


def world_record(name: str):
    return World(name).driver.servers[name].record


def test_requests_that_find_no_room_wait_in_line(monkeypatch) -> None:
    world = limited(monkeypatch, "a", 2)
    server = world.driver.servers["a"]
    server.hangs = True

    async def ask_all() -> None:
        tasks = [asyncio.create_task(world.client.generate(request(n))) for n in range(6)]
        await asyncio.sleep(0.1)
        assert len(server.requests) == 2
        server.hangs = False
        assert len(await asyncio.gather(*tasks)) == 6

    asyncio.run(ask_all())
    asyncio.run(ask_all_again(world))
    assert [one.prompt_ids[0] for one in server.requests] == [*range(6), 7]


def test_requests_without_a_connection_wait_in_line() -> None:
    world = World("ab")
    world.begin()
    client = PoolClient(world.pool, world.driver, world.options, max_connections=3)
    servers = world.driver.servers.values()
    for server in servers:
        server.hangs = True

    async def ask_all() -> None:
        tasks = [asyncio.create_task(client.generate(request(n, n_samples=2))) for n in range(4)]
        await asyncio.sleep(0.1)
        assert sum(len(server.requests) for server in servers) == 1
        for server in servers:
            server.hangs = False
        assert len(await asyncio.gather(*tasks)) == 4

    asyncio.run(ask_all())


async def ask_all_again(world: World) -> None:
    """Another event loop, as in the next step."""
    await world.client.generate(request(7))


def test_a_completion_that_goes_on_elsewhere_does_not_wait_in_line(monkeypatch) -> None:
    world = limited(monkeypatch, "a", 1)
    server = world.driver.servers["a"]
    server.aborts_after = 1

    async def ask_all() -> None:
        await asyncio.gather(*(world.client.generate(request(n)) for n in range(4)))

    asyncio.run(ask_all())
    prompts = [one.prompt_ids for one in server.requests]
    assert prompts.index((0, 1)) < prompts.index((3,)), "the rest of the first one"
