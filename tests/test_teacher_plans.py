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


def without_effect(found: RunPlan) -> list[tuple[str, str, str]]:
    """Option, requested value and effective one of the teacher's options without effect."""
    decisions = [(d.option, d.requested, d.effective) for d in found.decisions]
    return [d for d in decisions if d[0].startswith("teacher") and d[2] in ("no effect", "not used")]


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
    assert not without_effect(found)
    [obstacle] = plan("teacher.rollout.backend=served:d7").obstacles
    assert "teacher.rollout served:d7: 7" in obstacle.text
    assert "smaller sizes in actor.backend and teacher.rollout.backend" in obstacle.text


def test_a_teacher_that_is_trained_first_also_runs_on_the_trainers_ranks(plan):
    trained = ("teacher.path=null", "teacher.model_config={model_type: qwen3}", "teacher.warm_start.steps=3")
    found = plan(*trained, "teacher.backend=archon:t2", "teacher.archon.enable_compile=false")
    assert str(found.layouts["teacher"]) == "archon:t2"
    assert found.processes.parts[0].roles == ("actor", "rollout", "teacher")
    assert not without_effect(found)


def test_options_without_effect_are_decisions(plan):
    options = ("teacher.rollout.weight_transport=disk", "teacher.offload=true", "teacher.archon.ac_mode=full")
    found = plan(*options, "teacher.dtype=float64", "teacher.mb_spec.max_tokens_per_mb=99")
    assert without_effect(found) == [
        ("teacher.rollout.weight_transport", "disk", "no effect"),
        ("teacher.archon.ac_mode", "full", "no effect"),
        ("teacher.offload", "true", "no effect"),
    ]
    trained = plan("teacher.engine_type=train")
    assert without_effect(trained) == [("teacher.rollout", "served:d2t2", "no effect")]


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


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["teacher={path: a}", "teacher.rl_loss_weight=0"], ""),
        (["teacher.path=a", "teacher.rl_loss_weight=0"], ""),
        (["teacher={path: a}"], "override 'teacher={path: a}': "),
        (["teacher={path: a}", "teacher.rollout=null"], "override 'teacher.rollout=null': "),
    ],
)
def test_an_error_about_an_option_that_is_left_out_names_no_other_options_override(tmp_path, overrides, named):
    file = tmp_path / "run.yaml"
    file.write_text(RUN.partition("teacher:")[0], encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_config(file, overrides, registry())
    assert str(raised.value).startswith(f"{named}teacher.rollout.backend: found none")


def test_servers_beside_a_teacher_on_the_actors_ranks_are_a_decision_in_areals_form(tmp_path):
    file = tmp_path / "run.yaml"
    teacher = 'total_train_steps: 1\nteacher: {engine_type: train, train: {path: a}, rollout: {backend: "sglang:d1"}}\n'
    file.write_text(RUN.partition("teacher:")[0] + teacher, encoding="utf-8")
    found = plan_run(load_config(file, (), registry()), registry())
    [decision] = [decision for decision in found.decisions if decision.option == "teacher.rollout"]
    assert (decision.requested, decision.effective) == ("sglang:d1", "no effect")
    assert "teacher" in found.layouts


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
