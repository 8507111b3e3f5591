"""Inference servers on a Ray cluster, and their registry in an actor of it."""

from __future__ import annotations

import pytest

from archon_core.contracts.server_registry import NameResolveConfig, RegistryChange
from archon_core.errors import ServerError
from archon_core.serving.discovery import Discovery
from archon_core.serving.record import ServerRecord
from cluster_runs import Runs, until

from .conftest import RayCluster, processes_of

pytestmark = pytest.mark.ray

RL = (
    "algorithm=grpo",
    "reward=arithmetic",
    "data.dataset=arithmetic",
    "data.path=null",
    "data.batch_size=4",
    "actor.backend=archon:d1",
    "rollout.backend=served:d1",
    "gconfig.n_samples=2",
    "gconfig.max_new_tokens=4",
    "trainer.max_steps=3",
)

A = ServerRecord("127.0.0.1:8000", "aaaa", "served")
B = ServerRecord("127.0.0.1:8001", "bbbb", "served", version=3)


def test_a_server_joins_the_trainer_by_the_registry_in_ray_and_ends_with_it(runs: Runs, cluster: RayCluster) -> None:
    run = runs.start("servers", *RL, "cluster.name_resolve.type=ray")
    assert run.wait() == 0, run.text
    assert "joined" in run.text
    assert "rollout.weight_transport null disk" in run.text, "memory of another machine is out of reach"
    assert [row["step"] for row in run.metrics] == [1, 2, 3]
    assert "is announced" in (run.folder / "logs" / "server-0.log").read_text(encoding="utf-8")
    assert not processes_of(run)
    assert cluster.is_free()


def test_entries_of_the_registry_come_change_expire_and_go(cluster: RayCluster) -> None:
    import ray

    from archon_ray.cluster import end_actor
    from archon_ray.entries import actor_name

    section = NameResolveConfig(type="ray", nfs_record_root="x")
    registry, other = (Discovery(section, "e/registry").open() for _ in range(2))
    assert registry.list() == {}
    first = registry.announce("a", A, ttl=60)
    cursor, changes = registry.changes(0)
    assert changes == [RegistryChange("a", A)]
    lost = other.announce("b", B, ttl=3)
    until(lambda: registry.list() == {"a": A}, "expiry")
    lost.refresh()
    assert registry.list() == {"a": A, "b": B}
    moved = ServerRecord(A.address, A.incarnation, "served", version=7)
    first.refresh(moved)
    assert RegistryChange("a", moved) in registry.changes(cursor)[1]
    ray.kill(ray.get_actor(actor_name("ray_kv_store", "e/registry"), namespace="archon"), no_restart=False)
    assert registry.list()["a"] == moved, "entries that the actor has lost stay until servers have renewed them"
    assert Discovery(section, "e/registry").open().list() == {}
    first.refresh()
    assert Discovery(section, "e/registry").open().list() == {"a": moved}
    assert Discovery(section, "e/other").open().list() == {}, "runs are apart"
    first.withdraw()
    first.withdraw()
    with pytest.raises(ServerError, match="refresh after withdraw"):
        first.refresh()
    for run in ("e/registry", "e/other"):
        end_actor(actor_name("ray_kv_store", run))
        end_actor(actor_name("ray_kv_store", run))
