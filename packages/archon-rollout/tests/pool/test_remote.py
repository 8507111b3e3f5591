"""The client in another process: it knows the servers that the trainer named last, and waits for the trainer's word."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace

import pytest
from fake_servers import FakeDriver, FakeServer
from test_pool import World

from archon_core.contracts.rollout import Completion, GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.errors import ConfigError, ServerError
from archon_core.serving.record import ServerRecord
from archon_rollout.pool.client import PoolClient
from archon_rollout.pool.remote import REST_SECONDS, PushedClient, PushedServers

REQUEST = GenerationRequest((7, 7, 7), GenerationConfig(max_new_tokens=2), (5,))


class Remote:
    """Servers with the names of letters, and a client of them with a clock that the test sets."""

    def __init__(self, names: str, *, timeout: float = 60.0, retries: int = 1) -> None:
        self.now = 0.0
        self.records = {n: ServerRecord(f"{n}:1", n, "served") for n in names}
        self.driver = FakeDriver(*(FakeServer(record) for record in self.records.values()))
        self.servers = PushedServers(lambda: self.now)
        config = replace(RolloutConfig(), request_timeout=timeout, request_retries=retries)
        self._client = PoolClient(self.servers, self.driver, config, clock=self.servers.clock)

    async def generate(self) -> list[Completion]:
        with self.servers.one_request():
            return await self._client.generate(REQUEST)

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


def test_a_request_has_one_number_of_attempts_whatever_the_trainer_decides():
    async def run() -> None:
        remote = Remote("a", retries=2)
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
        with pytest.raises(ServerError, match=r"3 attempts failed \(rollout\.request_retries=2(?s:.*out of memory){3}"):
            await task
        assert len(remote.driver.servers["a"].requests) == 3

    asyncio.run(run())


def test_all_attempts_share_one_time_limit():
    async def run() -> None:
        remote = Remote("a", timeout=10.0, retries=9)
        remote.name("a")
        server = remote.driver.servers["a"]
        server.refuses = "no answer"
        task = asyncio.create_task(remote.generate())
        for attempt in (1, 2, 3):
            server.hangs = True
            await asyncio.wait_for(remote.asked("a", attempt), 5)
            remote.now += 4.0  # the server works on it
            server.hangs = False
            while not remote.servers.failures():
                await asyncio.sleep(0.001)
            remote.now += 1000.0  # the trainer trains
            remote.name("a")
        with pytest.raises(ServerError, match=r"3 attempts failed \(.*request_timeout=10 s\)"):
            await asyncio.wait_for(task, 5)

    asyncio.run(run())


def test_a_request_avoids_a_server_that_failed_it_until_the_trainer_has_decided():
    async def run() -> None:
        remote = Remote("ab", retries=3)
        remote.name("ab")
        for server in remote.driver.servers.values():
            server.refuses = "it broke down"
        task = asyncio.create_task(remote.generate())
        await asyncio.gather(remote.asked("a"), remote.asked("b"))
        for server in remote.driver.servers.values():
            server.refuses = ""
        remote.now += REST_SECONDS
        await asyncio.sleep(0.12)
        assert not task.done(), "both have failed, and the trainer has not heard of it"
        await asyncio.wait_for(remote.generate(), 5)
        remote.servers.failures()
        remote.name("b")
        await asyncio.wait_for(task, 5)
        assert sum(len(server.requests) for server in remote.driver.servers.values()) == 4

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
