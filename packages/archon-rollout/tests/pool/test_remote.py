"""The client in another process: it knows the servers that the trainer named last, and waits for the trainer's word."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace

import pytest
from fake_servers import FakeDriver, FakeServer
from test_pool import World

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.errors import ConfigError, ServerError
from archon_core.serving.record import ServerRecord
from archon_rollout.pool.client import PoolClient
from archon_rollout.pool.remote import REST_SECONDS, PushedClient, PushedServers, generate_patiently

REQUEST = GenerationRequest((7, 7, 7), GenerationConfig(max_new_tokens=2), (5,))


class Remote:
    """Servers with the names of letters, and a client of them with a clock that the test sets."""

    def __init__(self, names: str, *, timeout: float = 60.0, retries: int = 1) -> None:
        self.now = 0.0
        self.records = {n: ServerRecord(f"{n}:1", n, "served") for n in names}
        self.driver = FakeDriver(*(FakeServer(record) for record in self.records.values()))
        self.servers = PushedServers(lambda: self.now)
        config = replace(RolloutConfig(), request_timeout=timeout, request_retries=retries)
        client = PoolClient(self.servers, self.driver, config, clock=lambda: self.now)
        self.generate = lambda: generate_patiently(client, self.servers, config, REQUEST, "", lambda: self.now)

    def name(self, names: str, answering: str = "") -> None:
        self.servers.update([self.records[n] for n in names], 1, list(answering))

    async def asked(self, name: str, n: int = 1) -> None:
        """Wait until a server has got ``n`` requests."""
        while len(self.driver.servers[name].requests) < n:
            await asyncio.sleep(0.001)


def test_a_request_whose_only_server_failed_waits_for_the_trainer_and_is_repeated():
    async def run() -> None:
        remote = Remote("a")
        remote.name("a")
        server = remote.driver.servers["a"]
        server.refuses = "it broke down"
        task = asyncio.create_task(remote.generate())
        await remote.asked("a")
        server.refuses = ""
        await asyncio.sleep(0.12)
        assert not task.done(), "the trainer has not heard of the failure"
        remote.name("a")
        await asyncio.sleep(0.12)
        assert not task.done(), "this list is older than the failure"
        assert remote.servers.failures() == {"a": "it broke down"}
        remote.name("a")
        [completion] = await asyncio.wait_for(task, 5)
        assert completion.token_ids == (3, 4)

    asyncio.run(run())


def test_time_without_a_server_does_not_count():
    async def run() -> None:
        remote = Remote("a", timeout=10.0)
        remote.name("a")
        server = remote.driver.servers["a"]
        server.refuses = "it broke down"
        task = asyncio.create_task(remote.generate())
        await remote.asked("a")
        server.refuses = ""
        remote.servers.failures()
        remote.name("")
        remote.now += 1000.0  # far beyond the time limit, without a server
        await asyncio.sleep(0.12)
        remote.name("a")
        [completion] = await asyncio.wait_for(task, 5)
        assert completion.token_ids == (3, 4)

    asyncio.run(run())


def test_a_server_that_fails_again_and_again_ends_the_request():
    async def run() -> None:
        remote = Remote("a", retries=1)
        remote.name("a")
        remote.driver.servers["a"].refuses = "out of memory"
        task = asyncio.create_task(remote.generate())
        for _ in range(200):
            if task.done():
                break
            remote.servers.failures()
            remote.name("a")  # the server answers the trainer's probes
            remote.now += REST_SECONDS
            await asyncio.sleep(0.02)
        with pytest.raises(ServerError, match="out of memory"):
            await task
        assert len(remote.driver.servers["a"].requests) == 4, "two rounds of two attempts"

    asyncio.run(run())


def test_a_slow_server_does_not_get_the_time_limit_twice():
    async def run() -> None:
        remote = Remote("a", timeout=10.0, retries=3)
        remote.name("a")
        server = remote.driver.servers["a"]
        server.hangs = True
        task = asyncio.create_task(remote.generate())
        await remote.asked("a")
        remote.now += 11.0
        server.refuses, server.hangs = "no answer in 10 s", False
        with pytest.raises(ServerError, match="no answer in 10 s"):
            await asyncio.wait_for(task, 5)

    asyncio.run(run())


def test_a_suspect_server_keeps_its_requests_and_gets_no_others():
    async def run() -> None:
        remote = Remote("ab")
        remote.name("a")
        server = remote.driver.servers["a"]
        server.hangs = True
        task = asyncio.create_task(remote.generate())
        await remote.asked("a")
        remote.name("b", answering="a")
        await asyncio.wait_for(remote.generate(), 5)
        assert len(remote.driver.servers["b"].requests) == 1
        await asyncio.sleep(0.12)
        server.hangs = False
        await asyncio.wait_for(task, 5)
        assert len(remote.driver.servers["b"].requests) == 1
        assert remote.servers.failures() == {}

    asyncio.run(run())


def test_requests_of_a_server_that_left_go_to_others_and_it_is_not_reported():
    async def run() -> None:
        remote = Remote("ab")
        remote.name("a")
        remote.driver.servers["a"].hangs = True
        task = asyncio.create_task(remote.generate())
        await remote.asked("a")
        remote.name("b")
        await asyncio.wait_for(task, 5)
        assert len(remote.driver.servers["b"].requests) == 1
        assert remote.servers.failures() == {}
        remote.driver.servers["a"].hangs = False

    asyncio.run(run())


def test_failures_elsewhere_count_per_server_and_not_as_a_round_of_probes():
    """Three servers that fail at once look like a fault of this side to the probes; requests did fail on each."""

    async def run() -> None:
        world = World("abc")
        await world.pool.refresh()
        world.publish()
        world.pool.report_failures(dict.fromkeys("abc", "reset"))
        assert world.pool.active() == []
        assert sorted(world.pool.answering()) == ["a", "b", "c"], "suspect servers may finish what they have"
        world.pool.report_failures({"a": "reset"})
        assert sorted(world.pool.answering()) == ["b", "c"]

    asyncio.run(run())


def test_completions_end_at_stop_texts_which_servers_do_not_get():
    driver = FakeDriver(FakeServer(ServerRecord("a:1", "a", "served")))
    data = {"driver": "served", "config": asdict(RolloutConfig()), "options": None, "token": ""}
    client = PushedClient(data)
    client._client = PoolClient(client._servers, driver, RolloutConfig())
    client.update([ServerRecord("a:1", "a", "served")], 1)
    config = GenerationConfig(max_new_tokens=9, stop=["56"])
    request = GenerationRequest((7, 7, 7), config, (5,), decode=lambda ids: "".join(map(str, ids)))
    [completion] = asyncio.run(client.generate(request))
    assert (completion.token_ids, completion.stop_reason) == ((3, 4, 5, 6), "stop")
    assert len(completion.logprobs) == len(completion.versions) == 4
    [sent] = driver.servers["a"].requests
    assert (sent.config.stop, sent.decode) == (None, None)
    with pytest.raises(ConfigError, match="found stop texts without a decode function"):
        asyncio.run(client.generate(replace(request, decode=None)))
