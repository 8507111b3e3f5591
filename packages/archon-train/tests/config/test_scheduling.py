"""``scheduling_spec`` and ``scheduling_strategy``: honoured, refused by name, or recorded as unused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from archon_core.config.loading import LoadedConfig
from archon_core.contracts.launching import LauncherCheck, LauncherSpec
from archon_core.contracts.rollout import InferenceEngineSpec
from archon_core.contracts.scheduling import SchedulingSpec
from archon_core.contracts.serving import ServerDriverSpec
from archon_core.errors import ConfigError
from archon_core.plugins import ModelSpec, Registry, TrainEngineSpec
from archon_core.ranks.role_ranks import RoleRanks
from archon_train.cluster import role_ranks
from archon_train.preflight import plan_run
from archon_train.run_plan import RunPlan

from .conftest import plugin, rl_plugin, rollout_plugin

Load = Callable[..., LoadedConfig]

ACTOR = "actor: {backend: 'able:d2', model_config: {model_type: tiny}}\n"
AREAL = "total_train_epochs: 1\nactor: {backend: 'able:d2', path: x}\ntrain_dataset: {path: x, batch_size: 4}\n"


@pytest.fixture
def installed(make_registry: Callable[..., Registry]) -> Registry:
    return make_registry(
        rl_plugin(),
        rollout_plugin(),
        plugin(
            "all",
            TrainEngineSpec(name="able", target="json:loads", axes="dtpcer", model_type="json:loads"),
            ModelSpec(name="tiny", target="json:loads", model_types=("tiny",), capabilities=frozenset({"critic"})),
            LauncherSpec(name="far", target="json:loads", scheduling=("env_vars", "cpu")),
        ),
    )


@pytest.fixture
def plan(load: Load, installed: Registry) -> Callable[..., RunPlan]:
    def plan(text: str, *overrides: str) -> RunPlan:
        return plan_run(load(text, overrides, plugins=installed, allow_missing=True), installed)

    return plan


def errors(found: RunPlan) -> list[str]:
    return [obstacle.text for obstacle in found.obstacles if obstacle.kind == "config"]


def unused(found: RunPlan) -> dict[str, str]:
    return {d.option: d.reason for d in found.decisions if "scheduling" in d.option}


def test_the_trainers_processes_get_the_actors_specification(plan: Callable[..., RunPlan]) -> None:
    found = plan(ACTOR, "actor.scheduling_spec.env_vars.A=1", "actor.scheduling_spec.cpu=4", "scheduler.type=far")
    assert [part.scheduling for part in found.processes] == [SchedulingSpec(cpu=4, env_vars={"A": "1"})]
    assert unused(found) == {}


def test_what_a_launcher_does_not_use_is_recorded(plan: Callable[..., RunPlan]) -> None:
    options = ("actor.scheduling_spec.env_vars.A=1", "actor.scheduling_spec.cpu=4", "actor.scheduling_spec.mem=8")
    assert unused(plan(ACTOR, *options)) == {
        "actor.scheduling_spec.cpu": "scheduler.type=local does not use it",
        "actor.scheduling_spec.mem": "scheduler.type=local does not use it",
    }
    assert unused(plan(ACTOR, *options, "scheduler.type=far")) == {
        "actor.scheduling_spec.mem": "scheduler.type=far does not use it"
    }


def test_an_engine_in_the_actors_processes_has_no_specification_of_its_own(plan: Callable[..., RunPlan]) -> None:
    found = plan(ACTOR + "ref: {}\n", "ref.scheduling_spec.env_vars.A=1")
    reason = "ref runs in the processes of actor, which get actor.scheduling_spec"
    assert unused(found) == {"ref.scheduling_spec": reason}
    same = plan(ACTOR + "ref: {}\n", "ref.scheduling_spec.cpu=4", "actor.scheduling_spec.cpu=4", "scheduler.type=far")
    assert unused(same) == {}, "AReaL's files repeat the actor's"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("ref.scheduling_strategy.type=colocation", "ref.scheduling_strategy.target=actor"), ""),
        (("rollout.scheduling_strategy.type=colocation", "rollout.scheduling_strategy.target=actor"), ""),
        (("actor.scheduling_strategy.type=separation",), ""),
        (("ref.scheduling_strategy.type=separation",), ""),
        (
            ("algorithm=sft", "ref.scheduling_strategy.type=separation"),
            "ref.scheduling_strategy: found separation; algorithm sft runs ref in the actor's processes; write "
            "type=colocation and target=actor, and leave ref.backend out or choose a layout of 2 ranks",
        ),
        (
            (
                "ref.scheduling_strategy={type: colocation, target: teacher}",
                "teacher={path: x, scheduling_strategy: {type: colocation, target: ref}}",
            ),
            "ref.scheduling_strategy: found colocation with teacher; teacher.scheduling_strategy is a colocation with "
            "ref, a circle; give one of them type=separation",
        ),
        (
            ("ref.scheduling_strategy.type=colocation", "ref.scheduling_strategy.target=ref"),
            "ref.scheduling_strategy.target: found ref itself; allowed is another engine; correct target, or "
            "type=separation to give ref its own ranks",
        ),
        (
            ("actor.scheduling_strategy={type: colocation, target: ref}", "ref.scheduling_strategy.type=separation"),
            "actor.scheduling_strategy: found colocation with ref; ref.scheduling_strategy.type=separation gives ref "
            "its own ranks; leave one of them out",
        ),
        (
            ("ref.scheduling_strategy.type=colocation", "ref.scheduling_strategy.target=critic"),
            "found colocation with critic; allowed are the engines of this run: actor, rollout",
        ),
        (
            (
                "ref.backend=able:d4",
                "ref.scheduling_strategy.type=colocation",
                "ref.scheduling_strategy.target=actor",
            ),
            "found colocation with actor; engines share ranks if they have as many: ref.backend=able:d4 has 4, "
            "actor.backend=able:d2 has 2; make them equal, or write type=separation",
        ),
    ],
)
def test_a_strategy_that_the_sizes_contradict_is_refused(
    plan: Callable[..., RunPlan], options: tuple[str, ...], message: str
) -> None:
    found = [text for text in errors(plan(ACTOR + "ref: {}\n", *options)) if "scheduling" in text]
    if message:
        assert message in found[0]
    else:
        assert found == []


def test_separated_roles_have_ranks_after_the_actors_and_models_may_share_them(plan: Callable[..., RunPlan]) -> None:
    apart = ("ref.backend=able:t2d2", "ref.scheduling_strategy.type=separation")
    beside = "teacher={path: x, backend: 'able:d4', scheduling_strategy: {type: colocation, target: ref}}"
    found = plan(ACTOR + "ref: {}\n", *apart, beside, "cluster.n_gpus_per_node=6", "ref.scheduling_spec.env_vars.A=1")
    assert not errors(found)
    assert [(part.name, part.roles, len(part.processes)) for part in found.processes] == [
        ("trainer", ("actor", "rollout"), 2),
        ("ref", ("ref", "teacher"), 4),
    ]
    ref = found.processes.parts[1]
    assert (found.processes.first_rank(ref), ref.together) == (2, 2)
    assert ref.scheduling.env_vars == {"A": "1"}
    assert not unused(found)
    trainer = found.processes.trainer
    assert [(process.rank, process.devices) for process in trainer.processes] == [(n, (n,)) for n in range(6)]
    assert role_ranks(found.shares) == (
        RoleRanks("actor", ("actor",), 0, 2),
        RoleRanks("ref", ("ref", "teacher"), 2, 4),
    )


def test_colocation_needs_a_target(load: Load, installed: Registry) -> None:
    with pytest.raises(ConfigError, match=r"ref\.scheduling_strategy\.target: found nothing with type=colocation"):
        load(ACTOR + "ref: {}\n", ["ref.scheduling_strategy.type=colocation"], plugins=installed)


SPEC = "scheduling_spec: [{task_type: worker, port_count: 2, gpu: 1, cpu: 4, mem: 32, cmd: x, env_vars: {A: b}}]"


def test_areals_list_becomes_a_section(load: Load, installed: Registry) -> None:
    text = AREAL.replace("path: x}", f"path: x, {SPEC}}}", 1) + "ref: {scheduling_spec: '${actor.scheduling_spec}'}\n"
    loaded = load(text, plugins=installed, allow_missing=True)
    expected = SchedulingSpec(cpu=4, mem=32, env_vars={"A": "b"})
    assert (loaded.config.actor.scheduling_spec, loaded.config.ref.scheduling_spec) == (expected, expected)
    (decision,) = [d for d in loaded.decisions if "scheduling" in d.option]
    assert (decision.option, decision.requested) == ("actor.scheduling_spec", "task_type, port_count, gpu, cmd")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("[{cpu: 4}, {cpu: 8}]", "actor.scheduling_spec: found 2 specifications; allowed is one"),
        ("[{cpu: 4, cpus: 8}]", "unknown option actor.scheduling_spec.cpus"),
        ("[{additional_bash_cmds: ['rm -r x']}]", "Archon runs no command that a file names"),
    ],
)
def test_areals_specifications_that_cannot_be_honoured_are_refused(
    load: Load, installed: Registry, spec: str, message: str
) -> None:
    text = AREAL.replace("path: x}", f"path: x, scheduling_spec: {spec}}}", 1)
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        load(text, plugins=installed, allow_missing=True)


@pytest.mark.parametrize("spec", ["[]", "null", "[{additional_bash_cmds: [], cpu: 4}]"])
def test_empty_specifications_of_areal_are_none(load: Load, installed: Registry, spec: str) -> None:
    text = AREAL.replace("path: x}", f"path: x, scheduling_spec: {spec}}}", 1)
    assert load(text, plugins=installed, allow_missing=True).config.actor.path == "x"


def check(config: object, *, plan: object, explicit: object) -> LauncherCheck:
    return LauncherCheck(("far: found no road; build one",), ("far: found no car; buy one",))


def test_a_launcher_checks_the_run_and_its_servers_are_elsewhere(
    load: Load, make_registry: Callable[..., Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "archon_fake_launcher", sys.modules[__name__])
    registry = make_registry(
        rl_plugin(),
        plugin(
            "all",
            TrainEngineSpec(name="able", target="json:loads", axes="dtpcer", model_type="json:loads"),
            ModelSpec(name="tiny", target="json:loads", model_types=("tiny",)),
            InferenceEngineSpec(name="runner", target="json:loads", runs_servers=True),
            ServerDriverSpec(name="kind", target="json:loads"),
            LauncherSpec(name="far", target="json:loads", starts_servers=True, check="archon_fake_launcher:check"),
        ),
    )
    found = plan_run(load(ACTOR, ["scheduler.type=far"], plugins=registry, allow_missing=True), registry)
    assert "far: found no road; build one" in errors(found)
    assert [o.text for o in found.obstacles if o.kind == "environment"] == ["far: found no car; buy one"]


def test_no_launcher_is_the_local_one(load: Load) -> None:
    assert load(f"scheduler: {{type: null}}\n{ACTOR}", allow_missing=True).config.scheduler.type == "local"


def test_separation_of_a_rollout_on_the_actors_ranks_has_no_effect(plan: Callable[..., RunPlan]) -> None:
    found = plan(ACTOR, "rollout.scheduling_strategy.type=separation")
    assert errors(found) == []
    reason = "rollout.backend=local samples on the ranks of actor; servers have processes of their own"
    assert unused(found) == {"rollout.scheduling_strategy": reason}


def test_a_target_of_separation_is_recorded_as_unused(plan: Callable[..., RunPlan]) -> None:
    found = plan(ACTOR + "ref: {}\n", "ref.scheduling_strategy={type: separation, target: actor}")
    assert errors(found) == []
    reason = "only type=colocation has a target; ref gets its own processes"
    assert unused(found) == {"ref.scheduling_strategy.target": reason}
