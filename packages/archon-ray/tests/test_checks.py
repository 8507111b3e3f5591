"""What the launcher says about a run before it starts, and what machines must have in common."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from archon_core.config.rules import broken_rules
from archon_core.contracts.launching import Part, Process, ProcessPlan
from archon_core.contracts.scheduling import SchedulingSpec
from archon_core.contracts.server_registry import NameResolveConfig
from archon_core.errors import ConfigError
from archon_core.layout import parse_layout
from archon_ray.checks import check_run
from archon_ray.machine import Place
from archon_ray.options import RayOptions
from archon_ray.places import check_places, rank_environment

TRAINER = Part("trainer", ("actor",), parse_layout("archon:d2"), (Process(0, 0), Process(1, 1)))


def config(**options: Any) -> SimpleNamespace:
    cluster = SimpleNamespace(fileroot="runs", name_resolve=NameResolveConfig(type=options.pop("registry", "folder")))
    return SimpleNamespace(
        ray=RayOptions(**options),
        cluster=cluster,
        experiment_name="e",
        trial_name="t",
        rollout=SimpleNamespace(addresses=[]),
    )


def critic(**spec: Any) -> Part:
    return Part("critic", ("critic",), TRAINER.layout, TRAINER.processes, scheduling=SchedulingSpec(**spec))


def server(role: str = "rollout", nodes: tuple[int, ...] = (0,), **spec: str) -> Part:
    processes = tuple(Process(rank, node) for rank, node in enumerate(nodes))
    return Part("server 0", (role,), parse_layout("sglang:d1"), processes, "server", scheduling=SchedulingSpec(**spec))


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ([TRAINER], {}, None),
        ([TRAINER, server()], {}, None),
        ([TRAINER], {"address": "local"}, "ray.address: found local.* the plan needs 2 machines"),
        ([TRAINER, server(nodes=(0, 1))], {}, "servers of one machine; lower t or p"),
        ([TRAINER, server("teacher.rollout")], {}, "start them yourself, and set teacher.rollout.addresses"),
        ([TRAINER, critic()], {}, None),
        ([TRAINER, critic(cpu=2)], {}, r"critic.scheduling_spec: found other values than in actor.scheduling_spec"),
    ],
)
def test_plans_that_do_not_fit_are_refused(parts: list[Part], options: dict[str, str], message: str | None) -> None:
    found = check_run(config(**options), plan=ProcessPlan(tuple(parts), 2, 0), explicit=()).problems
    assert bool(found) == (message is not None)
    if message is not None:
        assert re.search(message, found[0])


def test_an_address_of_ray_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    plan = ProcessPlan((TRAINER,), 2, 0)
    assert any("Ray Client" in text for text in check_run(config(), plan=plan, explicit=()).unable)
    assert not any("Ray Client" in text for text in check_run(config(address="h:1"), plan=plan, explicit=()).unable)


@pytest.mark.parametrize("address", ["head:6379", "[::1]:6379", "auto", "local", None])
def test_addresses(address: str | None) -> None:
    assert not list(broken_rules(RayOptions(address=address)))


@pytest.mark.parametrize("address", ["head", "ray://head:10001", ":1", "head:port", ""])
def test_wrong_addresses_are_refused(address: str) -> None:
    ((name, text),) = broken_rules(RayOptions(address=address))
    assert name == "address"
    assert "HOST:PORT of the cluster's head" in text
    assert ("ray job submit" in text) == address.startswith("ray://")


def place(host: str, missing: tuple[str, ...] = (), **versions: str) -> Place:
    return Place(host, f"10.{host}", f"id-{host}", {"python": "3.11.1", "torch": "2.13", **versions}, missing)


def test_machines_must_see_the_run_and_have_the_same_versions() -> None:
    check_places([place("a"), place("b")])
    with pytest.raises(ConfigError, match=r"b \(10\.b\) does not see /runs.*that all machines of the run share"):
        check_places([place("a"), place("b", ("/runs",))])
    with pytest.raises(ConfigError, match=r"found torch 2\.12 on c and 2\.13 on a; install the same"):
        check_places([place("a"), place("b"), place("c", torch="2.12")])
    with pytest.raises(ConfigError, match="found torch missing on b"):
        check_places([place("a"), place("b", torch="")])


def test_a_rank_finds_its_place_by_its_environment() -> None:
    found = rank_environment(3, [2, 3], 4, "10.0.0.1", 29500, Path("/logs"))
    assert found == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_ERROR_FILE": "/logs/rank-3.error.json",
    }


def test_checks_import_no_ray() -> None:
    assert "ray" not in sys.modules
