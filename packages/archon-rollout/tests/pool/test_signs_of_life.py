"""What counts as a sign of life of a server, and what as a failure of it."""

from __future__ import annotations

import pytest
from test_pool import World

from archon_core.errors import NoDescriptorError, ServerError
from archon_core.serving.record import ServerRecord
from archon_rollout.pool.pool import Pool
from archon_rollout.registries.addresses import AddressRegistry


def test_a_busy_server_in_whose_queue_probes_wait_stays_in_service() -> None:
    world = World("a")
    world.begin()
    server = world.driver.servers["a"]
    server.hangs = server.busy = True
    for _ in range(3):
        assert world.refresh() == ["a"]
    assert world.pool.status().members["a"].state == "active"
    server.busy = False
    world.refresh()
    assert world.refresh() == []


def test_whatever_a_driver_raises_concerns_one_server(monkeypatch) -> None:
    world = World("ab", request_retries=1)
    world.begin()
    generate = world.driver.generate

    async def answer_nonsense(server, *arguments, **options):
        return await generate(server, *arguments, **options) if server.incarnation == "b" else {}["results"]

    monkeypatch.setattr(world.driver, "generate", answer_nonsense)
    assert world.ask() == [3, 4, 5, 6]
    assert world.pool.status().members["a"].reason.endswith("KeyError: 'results'")
    assert world.refresh() == ["b"]
    assert world.pool.status().members["a"].reason == "2 probes failed; the last one: KeyError: 'results'"


def test_a_trainer_without_file_descriptors_does_not_blame_its_servers(monkeypatch) -> None:
    world = World("a", request_retries=0)
    world.begin()
    generate, failures = world.driver.generate, iter(range(3))

    async def connect(*arguments, **options):
        if next(failures, None) is not None:
            raise NoDescriptorError("too many open files")
        return await generate(*arguments, **options)

    monkeypatch.setattr(world.driver, "generate", connect)
    monkeypatch.setattr("archon_rollout.pool.client.REST_SECONDS", 0.001)
    assert world.refresh() == ["a"]
    assert world.pool.status().members["a"].state == "active"
    assert world.ask() == [3, 4, 5, 6], "the third attempt"
    assert world.pool.status().members["a"].failures == 0


def test_an_address_at_which_another_program_answers_is_no_server(monkeypatch) -> None:
    world = World("")

    def answer_nonsense(address: str, *, timeout: float) -> ServerRecord:
        return [].get("record")

    monkeypatch.setattr(world.driver, "ready", answer_nonsense)
    world.pool = Pool(AddressRegistry(["127.0.0.1:80"], "served"), world.driver, world.options)
    assert world.refresh() == []


def test_without_a_health_monitor_a_server_that_failed_a_request_gets_others_after_a_round() -> None:
    world = World("a", enable_health_monitor=False, health_check_failure_threshold=3, request_retries=0)
    world.begin()
    server = world.driver.servers["a"]
    server.refuses = "server a: out of memory"
    with pytest.raises(ServerError, match="out of memory"):
        world.ask()
    assert world.pool.acquire(tokens=1) is None
    server.refuses = ""
    assert world.refresh() == ["a"]
    assert world.ask() == [3, 4, 5, 6]
