import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from archon_core.config.sections import build_schema, choose_sections
from archon_core.config.yaml_file import parse_yaml
from archon_core.contracts.engine_config import ROLES, EngineConfig
from archon_core.errors import ConfigError
from archon_core.plugins import AlgorithmSpec, DatasetSpec, InferenceEngineSpec, PluginStatus, Registry, TrainEngineSpec
from archon_core.plugins.loader import load_core
from archon_engine.options.archon import ArchonEngineConfig
from archon_train.experiment import ROOT, ExperimentConfig

from .conftest import plugin, section

MakeRegistry = Callable[..., Registry]


def algorithm(name: str, *sections: Any) -> AlgorithmSpec:
    return AlgorithmSpec(name=name, target="json:loads", config=sections)


def schema_for(registry: Registry, text: str = "seed: 1") -> type:
    root = ROOT.with_engines(registry.all(TrainEngineSpec))
    return build_schema(root.schema, choose_sections(registry, parse_yaml(text, "f"), root).used)


def test_without_plugins_the_schema_is_the_root() -> None:
    assert schema_for(Registry([load_core()])) is ExperimentConfig


def test_the_engines_options_stand_under_every_model_that_it_runs(make_registry: MakeRegistry) -> None:
    schema = schema_for(make_registry())
    assert isinstance(schema().actor, ArchonEngineConfig)
    optional = {f.name: f.type for f in dataclasses.fields(schema) if f.name in ("critic", "ref", "teacher")}
    assert all(issubclass(hint.__args__[0], ArchonEngineConfig) for hint in optional.values())


def test_a_plugin_extends_a_section_of_core(registry: Registry) -> None:
    config = schema_for(registry)()
    assert isinstance(config, ExperimentConfig)
    assert isinstance(config.actor, EngineConfig)
    assert config.actor.backend == "archon:d1", "core's default of the section is kept"
    assert config.actor.eps_clip == 0.2
    names = [f.name for f in dataclasses.fields(config.actor)]
    assert names[0] == "backend", "core's options come first"
    assert names[-1] == "names"


def test_a_plugin_adds_a_section_at_any_depth(registry: Registry) -> None:
    config = schema_for(registry, "data: {dataset: puzzle}")()
    assert config.data.puzzle.size == 3
    assert config.data.dataset == "jsonl"


def test_a_section_below_one_that_nobody_has_makes_it(make_registry: MakeRegistry) -> None:
    registry = make_registry(plugin("x", algorithm("grpo", section("task.puzzle", "Puzzle"))))
    assert schema_for(registry)().task.puzzle.size == 3


def test_a_section_that_may_be_null_stays_so(make_registry: MakeRegistry) -> None:
    registry = make_registry(plugin("x", algorithm("grpo", section("critic", "Policy"))))
    schema = schema_for(registry)
    assert schema().critic is None
    annotation = next(f.type for f in dataclasses.fields(schema) if f.name == "critic")
    assert annotation.__args__[0]().eps_clip == 0.2


def test_sections_inside_an_optional_default_are_extended_too(make_registry: MakeRegistry) -> None:
    registry = make_registry(plugin("x", algorithm("grpo", section("actor.optimizer", "Puzzle"))))
    optimizer = schema_for(registry)().actor.optimizer
    assert (optimizer.size, optimizer.type) == (3, "adamw")


def test_only_sections_of_what_the_file_names_are_used(registry: Registry) -> None:
    choice = choose_sections(registry, parse_yaml("algorithm: sft", "f"), ROOT)
    loggers = [f"stats_logger.{name}" for name in ("tensorboard", "wandb", "swanlab", "trackio", "prometheus")]
    assert [s.path for s in choice.used] == [*ROLES, *loggers], (
        "those of the engine, and of loggers, which no option names"
    )
    assert {s.path for s in choice.unused} == {"actor", "data.puzzle"}


def test_two_algorithms_may_have_the_same_option_as_long_as_one_is_used(make_registry: MakeRegistry) -> None:
    registry = make_registry(
        plugin("a", algorithm("a", section("actor", "Policy"))),
        plugin("b", algorithm("b", section("actor", "OtherPolicy"))),
    )
    assert schema_for(registry, "algorithm: a")().actor.eps_clip == 0.2
    assert schema_for(registry, "algorithm: b")().actor.eps_clip == 0.5


def test_two_plugins_in_use_with_the_same_option_are_named_both(make_registry: MakeRegistry) -> None:
    registry = make_registry(
        plugin("a", algorithm("grpo", section("actor", "Policy"))),
        plugin("b", DatasetSpec(name="jsonl", target="json:loads", config=(section("actor", "OtherPolicy"),))),
    )
    with pytest.raises(ConfigError, match=r"actor\.eps_clip is defined by both archon-a and archon-b"):
        schema_for(registry)


def test_an_option_of_core_cannot_be_taken(make_registry: MakeRegistry) -> None:
    registry = make_registry(plugin("a", algorithm("grpo", section("actor", "ClashesWithCore"))))
    with pytest.raises(ConfigError, match=r"actor\.path is defined by both archon-core and archon-a"):
        schema_for(registry)


def test_a_section_named_by_two_specs_counts_once(make_registry: MakeRegistry) -> None:
    registry = make_registry(
        plugin(
            "a",
            algorithm("grpo", section("actor", "Policy")),
            DatasetSpec(name="jsonl", target="json:loads", config=(section("actor", "Policy"),)),
        )
    )
    assert schema_for(registry)().actor.eps_clip == 0.2


def test_a_section_cannot_stand_where_an_option_is(make_registry: MakeRegistry) -> None:
    registry = make_registry(plugin("a", algorithm("grpo", section("actor.backend", "Puzzle"))))
    with pytest.raises(ConfigError, match=r"the section 'actor\.backend', but actor\.backend is an option"):
        schema_for(registry)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("Nothing", "has no attribute 'Nothing'"),
        ("not_a_dataclass", "is no dataclass"),
        ("NoDefault", "fields without a default: needed"),
    ],
)
def test_a_section_that_cannot_be_loaded_is_reported_and_the_others_work(
    make_registry: MakeRegistry, registry: Registry, schema: str, reason: str
) -> None:
    broken = plugin("broken", InferenceEngineSpec(name="local", target="json:loads", config=(section("x", schema),)))
    choice = choose_sections(make_registry(*_plugins(registry), broken), parse_yaml("seed: 1", "f"), ROOT)
    assert [s.path for s in choice.used if s.owner == "archon-rl"] == ["actor"]
    (failure,) = choice.failures
    assert failure.startswith("section 'x' of archon-broken: ")
    assert reason in failure


def _plugins(registry: Registry) -> list[PluginStatus]:
    return [status for status in registry.plugins if status.name == "rl"]


@pytest.mark.parametrize(
    ("kind", "text", "names"),
    [
        ("algorithm", "seed: 1", {"grpo"}),
        ("algorithm", "algorithm: sft", {"sft"}),
        ("algorithm", "algorithm: ${trial_name}\ntrial_name: ppo", {"ppo"}),
        ("algorithm", "algorithm: ${trial_name}", {"trial0"}),
        ("algorithm", "algorithm: a${trial_name}", None),
        ("inference_engine", "rollout: {backend: 'sglang:d4t2'}", {"sglang"}),
        ("train_engine", "actor: {backend: 'archon:d2'}\nref: {backend: 'fsdp:d2'}", {"archon", "fsdp"}),
        ("train_engine", "ref: null", {"archon"}),
        ("reward", "seed: 1", None),
        ("command", "seed: 1", None),
    ],
)
def test_the_names_of_what_is_used_are_read_before_anything_else(kind: str, text: str, names: set[str] | None) -> None:
    assert ROOT.named(kind, parse_yaml(text, "f")) == (None if names is None else frozenset(names))


def test_checks_that_plugins_write_into_their_dataclasses_run(registry: Registry) -> None:
    schema = schema_for(registry)
    actor = type(schema().actor)
    with pytest.raises(ConfigError, match="found 13"):
        actor(eps_clip=13)
