"""Where the processes of a run go: machines, devices, tensor-parallel groups, servers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archon_core.contracts.scheduling import SchedulingSpec
from archon_core.errors import ConfigError
from archon_train.cluster import cluster_shares, engine_layouts
from archon_train.process_plan import ProcessPlan, plan_processes


def plan(n_nodes: int, n_devices: int, **backends: str) -> ProcessPlan:
    return plan_processes(cluster_shares(engine_layouts(backends)), n_nodes=n_nodes, n_gpus_per_node=n_devices)


def places(found: ProcessPlan) -> dict[str, list[tuple[int, tuple[int, ...]]]]:
    return {part.name: [(process.node, process.devices) for process in part.processes] for part in found}


def test_the_trainer_fills_machines_in_order_and_servers_spread() -> None:
    found = plan(3, 4, actor="archon:d2t2", rollout="vllm:d3t2", ref="")
    assert places(found) == {
        "trainer": [(0, (0,)), (0, (1,)), (0, (2,)), (0, (3,))],
        "server 0": [(1, (0, 1))],
        "server 1": [(2, (0, 1))],
        "server 2": [(1, (2, 3))],
    }
    assert next((part.name, part.roles) for part in found) == ("trainer", ("actor", "ref"))


def test_a_teachers_servers_have_devices_after_those_of_the_rollout() -> None:
    backends = {"actor": "archon:d2", "rollout": "sglang:d1", "teacher.rollout": "vllm:d2t2"}
    found = plan(1, 8, **backends)
    assert places(found) == {
        "trainer": [(0, (0,)), (0, (1,))],
        "server 0": [(0, (2,))],
        "teacher server 0": [(0, (3, 4))],
        "teacher server 1": [(0, (5, 6))],
    }
    assert [part.roles for part in found] == [("actor",), ("rollout",), *[("teacher.rollout",)] * 2]


def test_a_tensor_parallel_group_never_crosses_machines() -> None:
    found = plan(2, 3, actor="archon:p2t2", rollout="local")
    assert places(found) == {"trainer": [(0, (0,)), (0, (1,)), (1, (0,)), (1, (1,))]}


def test_a_tensor_parallel_group_of_experts_never_crosses_machines() -> None:
    found = plan(2, 3, actor="archon:(attn:d4|ffn:d1e2t2)", rollout="local")
    assert places(found) == {"trainer": [(0, (0,)), (0, (1,)), (1, (0,)), (1, (1,))]}
    assert found.trainer.together == 2


def test_a_server_that_no_machine_holds_is_split_between_its_stages() -> None:
    found = plan(3, 2, actor="archon:d2", rollout="vllm:t2p2")
    assert places(found)["server 0"] == [(1, (0, 1)), (2, (0, 1))]
    assert next(part for part in found if part.name == "server 0").nodes == (1, 2)


def test_a_role_of_another_size_has_a_part_of_its_own() -> None:
    found = plan(1, 8, actor="archon:d4", critic="archon:d2", rollout="local")
    assert places(found)["critic"] == [(0, (4,)), (0, (5,))]
    assert [part.roles for part in found] == [("actor", "rollout"), ("critic",)]


def test_cpus_share_the_ranks_evenly_and_have_no_devices() -> None:
    found = plan(2, 0, actor="archon:d2t2", rollout="vllm:d2")
    assert places(found) == {
        "trainer": [(0, ()), (0, ()), (1, ()), (1, ())],
        "server 0": [(0, ())],
        "server 1": [(1, ())],
    }


@pytest.mark.parametrize(
    ("n_nodes", "n_devices", "backends", "message"),
    [
        (
            4,
            2,
            {"actor": "archon:d2t4", "rollout": "local"},
            r"actor\.backend: found archon:d2t4, whose .* need 4 devices on one machine; .*cluster.n_gpus_per_node=2",
        ),
        (
            2,
            3,
            {"actor": "archon:t2p2", "rollout": "vllm:t2"},
            r"(?s)server 0 of rollout\.backend=vllm:t2, which needs 2 devices .* 1 on machine 0, 1 on machine 1.*"
            r"these engines fit with cluster\.n_nodes=3$",
        ),
    ],
)
def test_groups_that_fit_nowhere_are_refused(n_nodes, n_devices, backends, message) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(n_nodes, n_devices, **backends)


def test_a_part_says_what_must_be_together_and_what_its_processes_get() -> None:
    shares = cluster_shares(engine_layouts({"actor": "archon:d2p2t2", "rollout": "vllm:d2"}))
    spec = SchedulingSpec(cpu=4, env_vars={"NCCL_DEBUG": "INFO"})
    trainer, server, _ = plan_processes(shares, n_nodes=3, n_gpus_per_node=4, scheduling={"actor": spec})
    assert (trainer.kind, trainer.together, trainer.scheduling) == ("ranks", 2, spec)
    assert trainer.ranks_by_node == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert trainer.wish == "t2 on one machine; p may cross"
    assert (server.kind, server.scheduling, server.wish) == ("server", SchedulingSpec(), "spread over machines")


def test_sizes_without_measure_are_planned_or_refused_without_filling_the_memory() -> None:
    huge = 10**12
    assert places(plan(huge, huge, actor="archon:d2", rollout="vllm:d1")) == {
        "trainer": [(0, (0,)), (0, (1,))],
        "server 0": [(1, (0,))],
    }
    with pytest.raises(ConfigError, match=r"found engines that need 99999900 ranks together; allowed are up to"):
        plan(1, 0, actor="archon:d999999p100", rollout="local")


@given(st.data())
def test_no_device_is_used_twice(data: st.DataObject) -> None:
    sizes = {letter: data.draw(st.integers(1, 4), label=letter) for letter in "dpt"}
    servers = {letter: data.draw(st.integers(1, 3), label=f"server {letter}") for letter in "dtp"}
    n_nodes, n_devices = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 8))
    actor = "archon:" + "".join(f"{letter}{size}" for letter, size in sizes.items())
    rollout = "vllm:" + "".join(f"{letter}{size}" for letter, size in servers.items())
    try:
        found = plan(n_nodes, n_devices, actor=actor, rollout=rollout)
    except ConfigError:
        return
    used = [(process.node, device) for part in found for process in part.processes for device in process.devices]
    assert len(used) == len(set(used))
    assert len(used) == sizes["d"] * sizes["p"] * sizes["t"] + servers["d"] * servers["t"] * servers["p"]
    assert all(0 <= node < n_nodes and 0 <= device < n_devices for node, device in used)
    trainer = next(iter(found)).processes
    groups = [trainer[start : start + sizes["t"]] for start in range(0, len(trainer), sizes["t"])]
    assert all(len({process.node for process in group}) == 1 for group in groups)
