"""The two examples in AReaL's own form resolve on a machine that has nothing but core, engine and train."""

from collections.abc import Callable
from pathlib import Path

import pytest

from archon_core.plugins import Registry
from archon_train.experiment import load_config
from archon_train.preflight import plan_run

EXAMPLES = Path(__file__).parents[4] / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the repository has the examples, the package not")


@pytest.mark.parametrize(
    ("name", "shares", "packages"),
    [
        (
            "archon_qwen3_8b.yaml",
            {"actor": 16, "rollout": 8, "ref": 0},
            {"archon-pipeline", "archon-ray", "archon-rl", "archon-rollout", "archon-sglang"},
        ),
        (
            "archon_qwen3_moe.yaml",
            {"actor": 16, "rollout": 16, "ref": 0},
            {"archon-moe", "archon-pipeline", "archon-ray", "archon-rl", "archon-rollout", "archon-sglang"},
        ),
    ],
)
def test_an_example_fills_its_cluster_and_names_every_missing_package(
    make_registry: Callable[..., Registry], name: str, shares: dict[str, int], packages: set[str]
) -> None:
    registry = make_registry()
    loaded = load_config(EXAMPLES / name, (), registry, allow_missing=True)
    plan = plan_run(loaded, registry)
    assert {share.role: share.ranks for share in plan.shares} == shares
    cluster = loaded.config.cluster
    assert sum(shares.values()) == cluster.n_nodes * cluster.n_gpus_per_node
    assert {need.package.name for need in plan.needs} == packages
    assert not plan.is_wrong
    actor = loaded.config.actor
    assert actor.gradient_checkpointing
    assert (actor.archon.pp_schedule, actor.archon.enable_compile) == ("Interleaved1F1B", True)
    assert (actor.archon.ac_mode, loaded.config.scheduler.type) == ("selective", "ray")
