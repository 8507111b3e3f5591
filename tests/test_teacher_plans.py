"""What a dry run says of a teacher on servers: its place, its problems, and options without effect."""

from __future__ import annotations

import pytest

from archon_core import registry
from archon_core.errors import ConfigError
from archon_core.plugins import Registry
from archon_train.experiment import load_config
from archon_train.preflight import plan_run
from archon_train.run_plan import RunPlan

RUN = """
algorithm: grpo
reward: arithmetic
gconfig: {n_samples: 4}
tokenizer: {kind: characters}
data: {dataset: arithmetic}
cluster: {n_gpus_per_node: 8}
actor: {backend: "archon:d2", model_config: {model_type: qwen3}}
teacher: {path: large/model, rollout: {backend: "served:d2t2"}}
"""


@pytest.fixture
def plan(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(RUN, encoding="utf-8")

    def plan(*overrides: str) -> RunPlan:
        return plan_run(load_config(file, overrides, registry()), registry())

    return plan


def test_the_servers_are_parts_of_the_plan_and_the_trainer_holds_no_teacher(plan):
    found = plan("rollout.backend=served:d1")
    assert [(part.name, [p.devices for p in part.processes]) for part in found.processes] == [
        ("trainer", [(0,), (1,)]),
        ("server 0", [(2,)]),
        ("teacher server 0", [(3, 4)]),
        ("teacher server 1", [(5, 6)]),
    ]
    assert found.obstacles == ()
    assert "teacher" not in found.layouts
    assert not [decision for decision in found.decisions if "teacher" in decision.option]
    [obstacle] = plan("teacher.rollout.backend=served:d7").obstacles
    assert "teacher.rollout served:d7: 7" in obstacle.text
    assert "smaller sizes in actor.backend and teacher.rollout.backend" in obstacle.text


def test_a_teacher_that_is_trained_first_also_runs_on_the_trainers_ranks(plan):
    trained = ("teacher.path=null", "teacher.model_config={model_type: qwen3}", "teacher.warm_start.steps=3")
    found = plan(*trained, "teacher.backend=archon:t2", "teacher.archon.enable_compile=false")
    assert str(found.layouts["teacher"]) == "archon:t2"
    assert found.processes.parts[0].roles == ("actor", "rollout", "teacher")
    assert not [decision for decision in found.decisions if decision.option.startswith("teacher")]


def test_options_without_effect_are_decisions(plan):
    options = ("teacher.rollout.weight_transport=disk", "teacher.offload=true", "teacher.archon.ac_mode=full")
    found = plan(*options, "teacher.dtype=float64", "teacher.mb_spec.max_tokens_per_mb=99")
    assert [(decision.option, decision.effective) for decision in found.decisions] == [
        ("teacher.rollout.weight_transport", "no effect"),
        ("teacher.archon.ac_mode", "no effect"),
        ("teacher.offload", "no effect"),
    ]
    [decision] = plan("teacher.engine_type=train").decisions
    assert (decision.option, decision.requested) == ("teacher.rollout", "served:d2t2")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "teacher.rollout.backend=local",
            r"teacher\.rollout\.backend: found 'local' with teacher\.engine_type=rollout",
        ),
        ("teacher.rollout=null", r"teacher\.rollout\.backend: found none with .*; set it to the teacher's servers"),
        ("teacher.path=null", r"teacher\.path: found no path"),
    ],
)
def test_incomplete_sections_are_refused(plan, override, message):
    with pytest.raises(ConfigError, match=message):
        plan(override)


def test_engines_that_are_no_servers_are_named(plan):
    [obstacle] = plan("teacher.rollout.backend=archon:d1").obstacles
    assert obstacle.text.startswith("teacher.rollout.backend")
    assert "an engine for training" in obstacle.text


def test_missing_packages_of_the_servers_are_named(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(RUN.replace("served:d2t2", "sglang:d2t2"), encoding="utf-8")
    without = Registry([plugin for plugin in registry().plugins if plugin.distribution != "archon-sglang"])
    [need] = plan_run(load_config(file, (), without, allow_missing=True), without).needs
    assert need.package.name == "archon-sglang"
    assert need.purposes == ("teacher.rollout.backend: sglang",)


@pytest.mark.parametrize(("kind", "name"), [("vllm", "vLLM"), ("sglang", "SGLang")])
def test_servers_that_score_at_one_temperature_only_are_named(plan, kind, name):
    overrides = (f"teacher.rollout.backend={kind}:d1", "teacher.rollout.addresses=[host:1]", "rollout.backend=local")
    assert plan(*overrides).can_run
    [obstacle] = plan(*overrides, "gconfig.temperature=0.5").obstacles
    assert obstacle.text.startswith(f"gconfig.temperature: found 0.5 with teacher.rollout.backend={kind}:d1; {name}")
    [need] = plan(*overrides[:1]).needs
    assert (need.package.name, need.purposes) == (kind, (f"teacher.rollout.backend: {kind}:d1",))
