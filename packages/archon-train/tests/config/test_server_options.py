"""The registry of inference servers in dry runs, and AReaL's names of it."""

from collections.abc import Callable

import pytest

from archon_core.config.loading import LoadedConfig
from archon_core.contracts.server_registry import ServerRegistrySpec
from archon_core.contracts.serving import ServerDriverSpec
from archon_core.plugins import InferenceEngineSpec, ModelSpec, Registry, TrainEngineSpec
from archon_train.preflight import plan_run
from archon_train.run_plan import RunPlan

from .conftest import plugin, rl_plugin

SERVED = "actor: {model_config: {model_type: tiny}}\nrollout: {backend: 'served:d2'}\n"
LOCAL = SERVED.replace("served:d2", "local")
AREAL = "total_train_epochs: 1\nactor: {model_config: {model_type: tiny}}\nrollout: {backend: 'served:d2'}\n"


@pytest.fixture
def plugins(make_registry: Callable[..., Registry]) -> Registry:
    return make_registry(
        rl_plugin(),
        plugin(
            "rollout",
            InferenceEngineSpec(name="local", target="json:loads", letters=""),
            InferenceEngineSpec(name="served", target="json:loads", letters="dt", runs_servers=True),
            ServerDriverSpec(name="served", target="json:loads", transports=("shm",)),
            *(ServerRegistrySpec(name=name, target="json:loads") for name in ("static", "foreign")),
            ServerRegistrySpec(name="folder", target="json:loads", aliases=("nfs",)),
            TrainEngineSpec(name="archon", target="json:loads", axes="d", model_type="json:loads"),
            ModelSpec(name="tiny", target="json:loads", model_types=("tiny",)),
        ),
    )


@pytest.fixture
def plan(load: Callable[..., LoadedConfig], plugins: Registry) -> Callable[..., tuple[LoadedConfig, RunPlan]]:
    def plan(text: str, *overrides: str) -> tuple[LoadedConfig, RunPlan]:
        loaded = load(text, overrides, plugins=plugins, allow_missing=True)
        return loaded, plan_run(loaded, plugins)

    return plan


def problems(found: RunPlan) -> list[str]:
    return [obstacle.text for obstacle in found.obstacles if "name_resolve" in obstacle.text]


def test_the_registry_of_a_run_with_servers_must_exist(plan) -> None:
    assert not problems(plan(SERVED)[1])
    assert not problems(plan(SERVED, "cluster.name_resolve.type=nfs")[1])
    [text] = problems(plan(SERVED, "cluster.name_resolve.type=foldr")[1])
    assert "no installed plugin provides it; did you mean 'folder'" in text
    for name in ("etcd", "ray"):
        found = plan(SERVED, f"cluster.name_resolve.type={name}")[1]
        [need] = [need for need in found.needs if need.package.name == f"archon-{name}"]
        assert need.package.command == f"pip install archon-{name}"
        assert need.purposes == (f"cluster.name_resolve.type: {name}",)


def test_a_run_without_servers_does_not_use_the_registry_and_says_so(plan) -> None:
    _, found = plan(LOCAL, "cluster.name_resolve.type=ray")
    assert not problems(found)
    [decision] = [decision for decision in found.decisions if "name_resolve" in decision.option]
    assert decision.option == "cluster.name_resolve.type"
    assert (decision.requested, decision.effective) == ("ray", "no effect")
    assert not [decision for decision in plan(LOCAL)[1].decisions if "name_resolve" in decision.option]


@pytest.mark.parametrize(
    ("overrides", "unused"),
    [
        (("etcd3_addr=host:1",), [("etcd3_addr", "host:1", "only the registry etcd reads it")]),
        (("nfs_record_root=/names",), []),
        (("ray_actor_name=names",), [("ray_actor_name", "names", "only the registry ray reads it")]),
        (
            ("type=static", "nfs_record_root=/names", "etcd3_addr=host:1"),
            [
                ("nfs_record_root", "/names", "only the registry folder reads it"),
                ("etcd3_addr", "host:1", "only the registry etcd reads it"),
            ],
        ),
        (("type=foreign", "nfs_record_root=/names", "etcd3_addr=host:1"), []),
    ],
)
def test_options_of_other_registries_are_decisions(plan, overrides, unused) -> None:
    section = "cluster.name_resolve"
    _, found = plan(SERVED, *(f"{section}.{override}" for override in overrides))
    decisions = [(d.option, d.requested, d.reason) for d in found.decisions if "name_resolve" in d.option]
    assert decisions == [(f"{section}.{name}", asked, reason) for name, asked, reason in unused]


@pytest.mark.parametrize("override", ["rollout.start_servers=false", "rollout.addresses=[h:1,h:2]"])
def test_servers_that_run_already_need_no_ranks_of_the_run(plan, override: str) -> None:
    size = "cluster.n_gpus_per_node=1"
    assert [str(share) for share in plan(SERVED, size, override)[1].shares] == ["actor archon:d1: 1"]
    assert any("need 3 ranks on 1" in obstacle.text for obstacle in plan(SERVED, size)[1].obstacles)


@pytest.mark.parametrize(("name", "ours"), [("nfs", "folder"), ("etcd3", "etcd")])
def test_areals_names_of_registries_become_ours_with_a_decision(plan, name: str, ours: str) -> None:
    text = f"{AREAL}cluster: {{name_resolve: {{type: {name}, nfs_record_root: /names, etcd3_addr: 'e:1'}}}}\n"
    loaded, _ = plan(text)
    section = loaded.config.cluster.name_resolve
    assert (section.type, section.nfs_record_root, section.etcd3_addr) == (ours, "/names", "e:1")
    assert [(d.requested, d.effective) for d in loaded.decisions if "name_resolve" in d.option] == [(name, ours)]
    loaded, _ = plan(f"{AREAL}cluster: {{name_resolve: {{type: nfs, ray_actor_name: names}}}}\n")
    assert {d.option for d in loaded.decisions if "name_resolve" in d.option} == {
        "cluster.name_resolve.type",
        "cluster.name_resolve.nfs_record_root",
    }
