"""The pool with servers that fail: probes, warm-up, discovery, requests that move to other servers."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from fake_servers import FakeDriver, FakeServer

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.errors import ServerError, TrainingError
from archon_core.serving.record import ServerRecord
from archon_rollout.pool.client import PoolClient
from archon_rollout.pool.pool import Pool
from archon_rollout.publication.canary import Canary, ask_server
from archon_rollout.registries.addresses import AddressRegistry
from archon_rollout.registries.memory import MemoryRegistry

QUICK = {"health_check_timeout_seconds": 0.05, "health_check_failure_threshold": 2, "setup_timeout": 0.2}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class World:
    """Servers, their registry and a pool that is refreshed by hand."""

    def __init__(self, names: str, **options) -> None:
        self.clock = Clock()
        self.options = RolloutConfig(**{**QUICK, **options})
        self.driver = FakeDriver()
        self.registry = MemoryRegistry(self.clock)
        self.announcements = {}
        self.wrong: set[str] = set()
        for name in names:
            self.start(name)
        self.pool = Pool(self.registry, self.driver, self.options, clock=self.clock)
        self.client = PoolClient(self.pool, self.driver, self.options)

    def start(self, name: str, address: str = "") -> FakeServer:
        record = ServerRecord(address or f"127.0.0.1:{8000 + ord(name)}", name, "served")
        server = self.driver.servers[name] = FakeServer(record)
        self.announcements[name] = self.registry.announce(name, record, ttl=1e9)
        return server

    def publish(self) -> list[str]:
        """Publish the next version to all receivers; those in ``wrong`` fail."""
        receivers = [server.incarnation for server in self.pool.receivers()]
        outcomes = {name: "the canary differs by 0.3" if name in self.wrong else "" for name in receivers}
        self.pool.committed(self.pool.version + 1, outcomes)
        self.pool.decide()
        return receivers

    def refresh(self, *, at: float | None = None) -> list[str]:
        """One round, and the members after it."""
        if at is not None:
            self.clock.now = at
        asyncio.run(self.pool.refresh())
        return list(self.pool.decide().members)

    def begin(self) -> None:
        """Take all servers into service."""
        self.refresh()
        self.publish()

    def ask(self, n_tokens: int = 4, **options) -> list[int]:
        request = GenerationRequest((7, 7, 7), GenerationConfig(max_new_tokens=n_tokens), (5,))
        [completion] = asyncio.run(self.client.generate(request, **options))
        assert completion.logprobs == tuple(-float(token) for token in completion.token_ids)
        return list(completion.token_ids)


def test_servers_join_with_a_publication_that_they_pass() -> None:
    world = World("ab")
    world.wrong.add("b")
    assert world.refresh() == []
    assert world.pool.acquire(tokens=1) is None
    assert world.publish() == ["a", "b"]
    assert world.ask() == [3, 4, 5, 6]
    assert not world.driver.servers["b"].requests
    assert world.pool.target_server_addresses == [world.driver.servers["a"].record.address]
    status = world.pool.status()
    assert status.members["b"].reason == "the canary differs by 0.3"


def test_a_hanging_server_is_put_out_by_probes_and_comes_back() -> None:
    world = World("ab")
    world.begin()
    world.driver.servers["a"].hangs = True
    assert world.refresh() == ["a", "b"]
    assert {world.pool.acquire(tokens=1).incarnation for _ in range(3)} == {"b"}, "a suspect gets no new requests"
    assert world.refresh() == ["b"]
    assert world.pool.status().members["a"].reason == "2 probes failed; the last one: no answer in 0.05 s"
    world.driver.servers["a"].hangs = False
    assert world.refresh(at=10.0) == ["b"]
    assert world.refresh(at=100.0) == ["b"]
    assert world.publish() == ["a", "b"]
    assert world.refresh() == ["a", "b"]


def test_probes_and_canaries_of_several_pools_have_ids_that_a_server_does_not_know() -> None:
    world = World("a")
    world.begin()
    other = Pool(world.registry, world.driver, world.options, clock=world.clock)
    asyncio.run(other.refresh())
    other.committed(1, {server.incarnation: "" for server in other.receivers()})
    for pool in (world.pool, other, world.pool):
        asyncio.run(pool.refresh())
        assert pool.status().members["a"].state == "active"
        completion = ask_server(world.driver, world.driver.servers["a"].record, Canary((1, 2, 3)), timeout=1.0)
        assert len(completion.token_ids) == 8


def test_a_restarted_server_on_the_same_port_is_warmed_up_as_a_new_one() -> None:
    world = World("a", topology_change_cooldown_seconds=0.0)
    world.begin()
    address = world.driver.servers.pop("a").record.address
    world.announcements["a"].withdraw()
    world.start("x", address)
    assert world.refresh() == []
    assert world.pool.has_newcomers()
    assert world.publish() == ["x"]
    assert world.refresh() == ["x"]


def test_without_discovery_nobody_joins_later() -> None:
    world = World("a", enable_topology_discovery=False, topology_change_cooldown_seconds=0.0)
    world.begin()
    world.refresh()
    world.start("b")
    assert world.refresh() == ["a"]
    assert list(world.pool.status().members) == ["a"]


def test_an_unreadable_registry_changes_nothing(monkeypatch) -> None:
    world = World("a")
    world.begin()

    def fail() -> None:
        raise ServerError("stale file handle")

    monkeypatch.setattr(world.registry, "list", fail)
    assert world.refresh(at=50.0) == ["a"]
    assert world.pool.status().registry_error == "stale file handle"


def test_addresses_get_their_incarnation_from_the_server() -> None:
    world = World("ab", topology_change_cooldown_seconds=0.0)
    addresses = [server.record.address for server in world.driver.servers.values()]
    world.pool = Pool(AddressRegistry(addresses, "served"), world.driver, world.options)
    world.begin()
    assert world.refresh() == ["a", "b"]
    world.driver.servers["a"].hangs = True
    assert world.refresh() == ["a", "b"], "no answer to a query is one failed probe, not a departure"
    assert world.refresh() == ["b"]


def test_a_failed_request_goes_to_another_server() -> None:
    world = World("ab")
    world.begin()
    world.driver.servers["a"].refuses = "server a: out of memory"
    assert world.ask() == [3, 4, 5, 6]
    assert len(world.driver.servers["a"].requests) == 1
    assert world.pool.status().members["a"].state == "suspect"
    world.driver.servers["b"].refuses = "server b: out of memory"
    world.options.request_timeout = 0.3
    with pytest.raises(ServerError, match=r"1 attempts? failed \(rollout.request_retries=3.*\n  server b: out of mem"):
        world.ask()


def test_repetitions_are_limited() -> None:
    world = World("abc", request_retries=1, request_timeout=2.0, health_check_failure_threshold=100)
    world.begin()
    for name, server in world.driver.servers.items():
        server.refuses = f"server {name}: out of memory"
    with pytest.raises(
        ServerError, match=r"2 attempts failed .*\n  server a: out of memory\n  server b: out of memory$"
    ):
        world.ask()
    assert [len(server.requests) for server in world.driver.servers.values()] == [1, 1, 0]


def test_an_aborted_completion_is_continued_where_it_ended() -> None:
    world = World("ab")
    world.begin()
    first = world.driver.servers["a"]
    first.aborts_after = 3
    assert world.ask(8) == [3, 4, 5, 6, 7, 8, 9, 10]
    begun, rest = first.requests
    assert rest.prompt_ids == (7, 7, 7, 3, 4, 5)
    assert (rest.config.max_new_tokens, rest.config.n_samples) == (5, 1)
    assert rest.seeds != begun.seeds


def test_an_abort_before_the_first_token_repeats_the_request_itself() -> None:
    world = World("ab")
    world.begin()
    world.driver.servers["a"].aborts_after = 0
    assert world.ask(2) == [3, 4]
    begun, rest = world.driver.servers["a"].requests
    assert (rest.prompt_ids, rest.seeds) == (begun.prompt_ids, begun.seeds)


def test_a_long_pause_keeps_the_tokens_and_adds_no_tasks(monkeypatch) -> None:
    world = World("a")
    world.begin()
    server, n_tasks = world.driver.servers["a"], []
    generate, pauses = world.driver.generate, [3, *[0] * 50, None]

    async def pause(*arguments, **options):
        n_tasks.append(len(asyncio.all_tasks()))
        server.aborts_after = pauses.pop(0)
        return await generate(*arguments, **options)

    monkeypatch.setattr(world.driver, "generate", pause)
    monkeypatch.setattr("archon_rollout.pool.client.POLL_SECONDS", 0.001)
    assert world.ask(8) == [3, 4, 5, 6, 7, 8, 9, 10]
    assert (len(n_tasks), max(n_tasks) <= n_tasks[0] + 1) == (52, True)
    assert len({request.seeds for request in server.requests[1:]}) == 1


def test_a_request_that_nobody_waits_for_is_ended_on_its_server() -> None:
    world = World("a")
    world.begin()
    server = world.driver.servers["a"]
    server.hangs = True

    async def give_up() -> None:
        task = asyncio.create_task(
            world.client.generate(GenerationRequest((7,), GenerationConfig(max_new_tokens=2), (5,)))
        )
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    assert len(server.aborted) == 1
    assert world.pool.status().outstanding["a"] == 0


@pytest.mark.parametrize("departs", [False, True])
def test_requests_that_are_cancelled_together_cost_one_call_and_none_to_a_server_that_has_left(
    monkeypatch, departs
) -> None:
    world = World("ab")
    world.begin()
    calls = []
    monkeypatch.setattr(
        world.driver, "abort", lambda server, ids, timeout: calls.append((server.incarnation, len(ids)))
    )
    for server in world.driver.servers.values():
        server.hangs = True

    async def give_up() -> None:
        request = GenerationRequest((7,), GenerationConfig(max_new_tokens=2), (5,))
        tasks = [asyncio.create_task(world.client.generate(request)) for _ in range(20)]
        await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
        if departs:
            world.pool.failed("a", "no answer")
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(give_up())
    assert sorted(calls) == ([("b", 10)] if departs else [("a", 10), ("b", 10)])


def test_too_few_servers_are_an_error_that_says_who_left_and_why() -> None:
    world = World("ab", min_servers=2)
    world.pool = Pool(world.registry, world.driver, world.options)
    world.wrong.add("b")
    world.begin()
    with pytest.raises(TrainingError) as raised:
        world.pool.wait_for_receivers()
    assert "found 1 after 0.2 s; allowed is at least rollout.min_servers=2" in str(raised.value)
    assert f"{world.driver.servers['b'].record.address} is out: the canary differs" in str(raised.value)
    world.options.min_servers = 1
    assert [server.incarnation for server in world.pool.wait_for_receivers()] == ["a"]


def test_the_thread_watches_until_it_is_stopped() -> None:
    world = World("ab", health_check_interval_seconds=0.01, topology_change_cooldown_seconds=0.0, setup_timeout=20.0)
    pool = Pool(world.registry, world.driver, world.options)
    pool.start()
    try:
        receivers = pool.wait_for_receivers()
        pool.committed(1, {server.incarnation: "" for server in receivers})
        world.driver.servers["a"].hangs = True
        deadline = time.monotonic() + 20
        while "a" in pool.decide().members:
            assert time.monotonic() < deadline, "a hanging server stays"
            time.sleep(0.01)
    finally:
        pool.stop()
        pool.stop()


def test_an_error_of_the_thread_reaches_the_trainer(monkeypatch) -> None:
    world = World("a")

    def break_down() -> None:
        raise RuntimeError("a bug in the registry")

    monkeypatch.setattr(world.registry, "list", break_down)
    world.options.setup_timeout = 20.0
    pool = Pool(world.registry, world.driver, world.options)
    pool.start()
    try:
        with pytest.raises(RuntimeError, match="a bug in the registry"):
            pool.wait_for_receivers()
    finally:
        pool.stop()


def test_a_registry_that_hangs_does_not_delay_probes(monkeypatch) -> None:
    world = World("a", health_check_interval_seconds=0.01)
    world.begin()
    reading, released = threading.Event(), threading.Event()

    def hang() -> list[ServerRecord]:
        reading.set()
        assert released.wait(20)
        return []

    monkeypatch.setattr(world.registry, "list", hang)
    pool = world.pool = Pool(world.registry, world.driver, world.options)
    pool._membership.announced({"a": world.driver.servers["a"].record}, 0.0)
    world.publish()
    world.driver.servers["a"].hangs = True
    pool.start()
    try:
        assert reading.wait(20)
        deadline = time.monotonic() + 20
        while pool.status().members["a"].state != "out":
            assert time.monotonic() < deadline, "the probes wait for the registry"
            time.sleep(0.01)
        assert not released.is_set()
    finally:
        released.set()
        pool.stop()
