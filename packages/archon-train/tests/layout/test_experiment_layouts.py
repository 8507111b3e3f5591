"""The engines of an experiment: inheritance, kinds, and the sum of their ranks against the cluster."""

from __future__ import annotations

import pytest

from archon_core.contracts.engine_config import EngineConfig
from archon_core.errors import ConfigError, LayoutError
from archon_core.layout import parse_layout
from archon_train.cluster import (
    check_cluster,
    cluster_shares,
    engine_backends,
    engine_layouts,
)
from archon_train.experiment import ExperimentConfig


@pytest.mark.parametrize("role", ["critic", "ref", "teacher"])
@pytest.mark.parametrize("missing", ["", None])
def test_an_engine_without_backend_inherits_the_actors(role: str, missing: str | None) -> None:
    layouts = engine_layouts({"actor": "archon:d4t2", role: missing})

    assert layouts == {"actor": parse_layout("archon:d4t2"), role: parse_layout("archon:d4t2")}


def test_an_engine_with_a_backend_of_its_own_keeps_it() -> None:
    layouts = engine_layouts({"actor": "archon:d4t2", "critic": "fsdp:d8", "rollout": "sglang:d4"})

    assert {role: str(layout) for role, layout in layouts.items()} == {
        "rollout": "sglang:d4",
        "actor": "archon:d4t2",
        "critic": "fsdp:d8",
    }


def test_the_backends_of_a_configuration_are_those_of_the_engines_that_it_has() -> None:
    config = ExperimentConfig(ref=EngineConfig())

    assert engine_backends(config) == {"rollout": "local", "actor": "archon:d1", "ref": ""}
    assert str(engine_layouts(engine_backends(config))["ref"]) == "archon:d1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actor": ""}, r"actor.backend: found nothing; allowed: .*; fix: write actor.backend=archon:d1"),
        ({"ref": "archon:d1"}, r"actor.backend: found nothing; allowed: .*; fix: "),
        ({"actor": "archon:d1", "rollout": None}, r"rollout.backend: found nothing; .* write rollout.backend=local"),
        (
            {"actor": "archon:d1", "judge": "archon:d1"},
            r"found a backend for judge; allowed: rollout, actor, .*; fix: ",
        ),
    ],
)
def test_a_missing_backend_and_an_unknown_engine_are_refused(options: dict[str, str | None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine_layouts(options)


def test_a_malformed_backend_is_reported_under_its_option(read_message) -> None:
    with pytest.raises(LayoutError) as caught:
        engine_layouts({"actor": "archon:d4", "critic": "archon:d0"})

    assert read_message(caught.value).option == "critic.backend"


@pytest.mark.parametrize(
    ("options", "option", "found", "allowed"),
    [
        ({"actor": "sglang:d4"}, "actor.backend", "an engine for inference", "engines for training: archon, "),
        (
            {"actor": "archon:d4", "rollout": "archon:d4"},
            "rollout.backend",
            "an engine for training",
            "engines for inference: local, ",
        ),
    ],
)
def test_an_engine_of_the_wrong_kind_is_refused(read_message, options, option, found, allowed) -> None:
    with pytest.raises(LayoutError) as caught:
        engine_layouts(options)

    message = read_message(caught.value)
    assert message.option == option
    assert found in message.found
    assert allowed in message.allowed
    assert message.carets == [(0, 6)]
    assert f"{option}=" in message.fix


def ranks(**options: str) -> dict[str, int]:
    return {share.role: share.ranks for share in cluster_shares(engine_layouts(options))}


def test_training_engines_of_the_actors_world_size_share_its_ranks() -> None:
    assert ranks(rollout="sglang:d4t2", actor="archon:d4p2t2", critic="", ref="fsdp:d16") == {
        "rollout": 8,
        "actor": 16,
        "critic": 0,
        "ref": 0,
    }


def test_a_training_engine_of_another_world_size_has_ranks_of_its_own() -> None:
    assert ranks(actor="archon:d4", teacher="archon:d2") == {"actor": 4, "teacher": 2}


def test_local_rollout_runs_on_the_trainers_ranks_and_servers_never_do() -> None:
    assert ranks(rollout="local", actor="archon:d4") == {"rollout": 0, "actor": 4}
    assert ranks(rollout="sglang:d4", actor="archon:d4") == {"rollout": 4, "actor": 4}


@pytest.mark.parametrize(
    ("rollout", "actor", "n_nodes"),
    [("sglang:d4t2", "archon:d4p2t2", 3), ("sglang:d4t4", "archon:(attn:d1p4t2c2|ffn:d1p4t1e4)", 4)],
)
def test_experiments_in_areals_form_fill_their_clusters(rollout: str, actor: str, n_nodes: int) -> None:
    layouts = engine_layouts({"rollout": rollout, "actor": actor, "ref": ""})

    assert sum(share.ranks for share in check_cluster(layouts, n_nodes=n_nodes, n_gpus_per_node=8)) == n_nodes * 8
    with pytest.raises(ConfigError):
        check_cluster(layouts, n_nodes=n_nodes - 1, n_gpus_per_node=8)


def test_ranks_may_be_left_over() -> None:
    check_cluster(engine_layouts({"actor": "archon:d1", "rollout": "local"}), n_nodes=1, n_gpus_per_node=8)


def test_engines_that_do_not_fit_are_refused_with_the_sum() -> None:
    layouts = engine_layouts({"rollout": "sglang:d4t2", "actor": "archon:d4p2t2", "ref": "", "teacher": "archon:d2"})
    with pytest.raises(ConfigError) as caught:
        check_cluster(layouts, n_nodes=2, n_gpus_per_node=8)

    assert str(caught.value) == (
        "cluster: found engines that need 26 ranks on 16\n"
        "  rollout sglang:d4t2: 8\n"
        "  actor archon:d4p2t2: 16\n"
        "  ref archon:d4p2t2: 0, on the ranks of actor\n"
        "  teacher archon:d2: 2\n"
        "  sum: 8 + 16 + 2 = 26; cluster.n_nodes 2 x cluster.n_gpus_per_node 8 = 16\n"
        "allowed: a sum of at most 16, as with actor.backend=archon:d1p2t2\n"
        "fix: cluster.n_nodes=4, cluster.n_gpus_per_node=13 if a machine can run that many (a CPU can), "
        "or smaller sizes in rollout.backend, actor.backend and teacher.backend"
    )
    check_cluster(layouts, n_nodes=4, n_gpus_per_node=8)
    check_cluster(layouts, n_nodes=2, n_gpus_per_node=13)


@pytest.mark.parametrize("sizes", [{"n_nodes": 0, "n_gpus_per_node": 8}, {"n_nodes": 1, "n_gpus_per_node": -1}])
def test_a_cluster_without_ranks_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"cluster.n_.*: found (0|-1); allowed: from [01]; fix: "):
        check_cluster(engine_layouts({"actor": "archon:d1"}), **sizes)
