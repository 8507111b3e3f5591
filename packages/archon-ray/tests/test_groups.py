"""Placement groups for the processes of a plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from archon_core.contracts.launching import Part, Process
from archon_core.contracts.scheduling import SchedulingSpec
from archon_core.errors import ConfigError
from archon_core.layout import parse_layout
from archon_ray.groups import Bundle, Group, Node, explain_no_room, pin, server_group, trainer_group


def trainer(*nodes: int, devices: bool = True, **spec: int) -> Part:
    processes = tuple(Process(rank, node, (rank,) if devices else ()) for rank, node in enumerate(nodes))
    layout = parse_layout(f"archon:d{len(nodes)}")
    return Part("trainer", ("actor",), layout, processes, scheduling=SchedulingSpec(**spec))


def server(number: int, devices: int, **spec: int) -> Part:
    process = Process(0, 0, tuple(range(devices)))
    layout = parse_layout("sglang:d2t2")
    return Part(f"server {number}", ("rollout",), layout, (process,), "server", scheduling=SchedulingSpec(**spec))


def machines(count: int, **resources: float) -> list[Node]:
    return [Node(f"id{n}", f"n{n}", f"10.0.0.{n}", {"CPU": 8.0, "GPU": 2.0, **resources}) for n in range(1, count + 1)]


def test_the_trainer_gets_a_bundle_per_machine_on_different_machines() -> None:
    group = trainer_group(trainer(0, 0, 1, cpu=3, mem=5))
    assert group.bundles == (Bundle(6, 2, 10), Bundle(3, 1, 5))
    assert group.strategy == "STRICT_SPREAD"
    assert group.bundles[0].resources("GPU") == {"CPU": 6, "GPU": 2, "memory": 10 * 2**30}


def test_a_trainer_of_one_machine_is_one_bundle() -> None:
    group = trainer_group(trainer(2, 2, devices=False))
    assert (group.bundles, group.strategy) == ((Bundle(2),), "STRICT_PACK")
    assert group.bundles[0].resources("GPU") == {"CPU": 2}


def test_devices_are_asked_by_the_clusters_name_for_them_or_not_at_all() -> None:
    bundle = trainer_group(trainer(0)).bundles[0]
    assert bundle.resources("NPU") == {"CPU": 1, "NPU": 1}
    assert bundle.resources(None) == {"CPU": 1}


def test_servers_are_spread_with_a_bundle_for_each() -> None:
    group = server_group([server(0, 2, cpu=2), server(1, 2, cpu=2)])
    assert group.bundles == (Bundle(4, 2), Bundle(4, 2))
    assert group.strategy == "SPREAD"


def test_without_wishes_any_machine_will_do() -> None:
    group = trainer_group(trainer(0, 1))
    assert pin(group, SchedulingSpec(), machines(3), accelerator="GPU", role="actor") is group


def test_nodelist_and_exclude_choose_the_machines_in_order() -> None:
    group = trainer_group(trainer(0, 1))
    found = pin(group, SchedulingSpec(nodelist="n[3,1-2]", exclude="10.0.0.1"), machines(4), accelerator="GPU", role="")
    assert [bundle.address for bundle in found.bundles] == ["10.0.0.3", "10.0.0.2"]
    assert found.bundles[0].resources("GPU") == {"CPU": 1, "GPU": 1, "node:10.0.0.3": 0.001}
    found = pin(group, SchedulingSpec(exclude="n1"), machines(3), accelerator="GPU", role="actor")
    assert [bundle.address for bundle in found.bundles] == ["10.0.0.2", "10.0.0.3"]


def test_servers_take_turns_on_the_listed_machines() -> None:
    group = server_group([server(number, 1) for number in range(3)])
    found = pin(group, SchedulingSpec(nodelist="n[1-2]"), machines(3), accelerator="GPU", role="rollout")
    assert [bundle.address for bundle in found.bundles] == ["10.0.0.1", "10.0.0.2", "10.0.0.1"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"nodelist": "n[1-2],n9"}, r"actor\.scheduling_spec\.nodelist: found n9.*allowed are n1 \(10\.0\.0\.1\), n2"),
        ({"nodelist": "n1"}, "found 2 machines to choose by nodelist and exclude .* large enough are n1;"),
        ({"exclude": "n[1-3]"}, "large enough are none; allow more machines"),
    ],
)
def test_machines_that_are_missing_or_too_few_are_refused(spec: dict[str, str], message: str) -> None:
    group = trainer_group(trainer(0, 1))
    with pytest.raises(ConfigError, match=message):
        pin(group, SchedulingSpec(**spec), machines(3), accelerator="GPU", role="actor")


def test_a_dead_or_small_machine_is_not_chosen() -> None:
    group = trainer_group(trainer(0, 0, devices=False))
    dead, _, fine = machines(3)
    small = Node("s", "s", "10.0.0.8", {"CPU": 1})
    nodes = [replace(dead, alive=False), small, fine]
    found = pin(group, SchedulingSpec(exclude="n7"), nodes, accelerator="GPU", role="actor")
    assert found.bundles[0].address == fine.address


def test_a_group_without_a_place_is_explained_with_the_machines() -> None:
    group = Group("trainer", (Bundle(8, 8), Bundle(8, 8)), "STRICT_SPREAD")
    text = explain_no_room(group, machines(1, memory=1e9), {"CPU": 3.0, "node:10.0.0.1": 1.0}, 600, "GPU")
    assert "within 600 s for trainer: 2 bundles of 8 CPUs, 8 devices on different machines" in text
    assert "the cluster has n1 (10.0.0.1): 8 CPU, 2 GPU" in text
    assert "free are 3 CPU, together; wait for other runs" in text
    assert "set cluster.n_gpus_per_node=0 to run on CPUs" in explain_no_room(group, machines(1), {}, 600, "NPU")
