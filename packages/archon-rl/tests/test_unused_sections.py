"""Sections that a run does not use stop no run, whatever they hold."""

from __future__ import annotations

import pytest
from test_preview import CONFIGURATION, PAIRS, PPO, TAUGHT

from archon_core.plugins import registry
from archon_train.experiment import load_config
from archon_train.preflight import plan_run


def plan(run, text: str, *overrides: str):
    run.config(text=text)
    return plan_run(load_config(run.root / "config.yaml", list(overrides), allow_missing=True), registry())


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (CONFIGURATION, ("data.path=./no.jsonl",)),
        (CONFIGURATION, ("data.validation_path=./no.jsonl",)),
        (CONFIGURATION, ("tokenizer_path=/no",)),
        (CONFIGURATION, ("reward_model.path=./no",)),
        (CONFIGURATION, ("critic.path=./no",)),
        (CONFIGURATION, ("ref.path=./no",)),
        (CONFIGURATION, ("ref.backend=fsdp:d2",)),
        (CONFIGURATION, ("ref.backend=archon:d4x2",)),
        (CONFIGURATION, ("ref.is_critic=true",)),
        (TAUGHT, ("reward=nope",)),
        (TAUGHT, ("rollout.backend=nope:d9",)),
        (TAUGHT, ("teacher.path=./no",)),
        (PAIRS.replace("dpo", "rw"), ("ref.path=./no",)),
    ],
)
def test_a_section_without_effect_stops_no_run(run, text, overrides):
    (run.root / "pairs.jsonl").touch()
    found = plan(run, text.replace("pairs.jsonl", str(run.root / "pairs.jsonl")), *overrides)
    option = overrides[0].partition("=")[0]
    assert not found.obstacles
    assert not found.needs
    [decision] = [d for d in found.decisions if option == d.option or option.startswith(f"{d.option}.")]
    assert decision.effective == "not used"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("ref.path=./no", "actor.kl_ctl=0.1"), "ref.path: found no folder './no'"),
        (("ref.is_critic=true", "actor.kl_ctl=0.1"), "ref.is_critic: found true; a model with a value head"),
        ((*PPO, "critic.path=./no"), "critic.path: found no folder './no'"),
    ],
)
def test_a_section_in_use_is_checked(run, overrides, message):
    assert any(obstacle.text.startswith(message) for obstacle in plan(run, CONFIGURATION, *overrides).obstacles)


def test_a_run_reads_no_layout_of_a_model_that_it_does_not_have(run):
    folder = run("ref.backend=archon:d4x2", "trainer.max_steps=1", "trainer.save_every=1", "trainer.eval_every=1")
    assert folder.latest_step() == 1


@pytest.mark.parametrize(("replays", "unused"), [("false", True), ("true", False)])
def test_routed_experts_are_unused_where_no_engine_replays_them(run, replays, unused):
    text = CONFIGURATION.replace("bigram:d1", "archon:d1")
    overrides = ("rollout.return_routed_experts=true", f"actor.archon.moe_routing_replay={replays}")
    decided = {d.option: d.effective for d in plan(run, text, *overrides).decisions}
    assert (decided.get("rollout.return_routed_experts") == "not used") is unused
