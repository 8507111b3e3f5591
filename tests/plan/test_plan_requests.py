"""A run's file and command-line options, as engines to plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from archon_core.config.loading import read_config
from archon_core.errors import ConfigError
from archon_core.plugins import registry
from archon_engine.options.archon import ArchonOptions
from archon_plan.constraints import check_engine
from archon_plan.engine_flags import EngineFlags, in_flags, request_engine
from archon_plan.engine_plan import EnginePlan, plan_engine
from archon_plan.parts import EngineRequest, Sequences
from archon_plan.request import RunRequest, request_run
from archon_train.experiment import ROOT
from archon_train.preflight import plan_run

EXAMPLES = Path(__file__).parents[2] / "examples"
AREAL = EXAMPLES / "archon_qwen3_moe.yaml"
OWN = EXAMPLES / "ppo_arithmetic.yaml"


def read(path: Path, *overrides: str, **options: object) -> RunRequest:
    return request_run(path, overrides, registry(), **options)  # type: ignore[arg-type]


def plan(request: EngineRequest) -> EnginePlan:
    check = check_engine(request, registry())
    assert check.violations == ()
    return plan_engine(request, check)


def flags(**options: object) -> EngineRequest:
    given = {"model": "qwen3-8b", "layout": "archon:d4", **options}
    return request_engine(EngineFlags(**given)).engines[0]  # type: ignore[arg-type]


def test_a_file_of_areal_gives_its_actor_with_the_sizes_of_its_hub_id() -> None:
    run = read(AREAL)
    (actor,) = run.engines  # actor.kl_ctl is 0, so the run has no reference
    assert (actor.role, actor.layout) == ("actor", "archon:(attn:d1p4t2c2|ffn:d1p4t1e4)")
    assert actor.model.entries["num_experts"] == 128
    assert (run.n_nodes, run.devices_per_node, str(run.rollout)) == (4, 8, "sglang:d4t4")
    assert actor.sequences == Sequences(number=256 * 4, length=2048, scored=0.5)
    assert "actor.optimizer.type" in {decision.option for decision in run.decisions}
    assert any("come from the table" in note for note in run.notes)


def test_a_penalty_on_the_kl_brings_the_reference_which_is_not_trained() -> None:
    actor, ref = read(AREAL, "actor.kl_ctl=0.1").engines
    assert (actor.role, ref.role, ref.layout) == ("actor", "ref", actor.layout)
    setting = plan(ref).setting
    assert not setting.trains
    assert setting.checkpointing == "none"
    assert {action.kind.value for rank in setting.actions for action in rank} == {"F"}
    assert setting.types.master == setting.types.compute == 2


def test_a_file_of_archon_gives_actor_and_critic() -> None:
    actor, critic = read(OWN).engines
    assert (actor.role, critic.role) == ("actor", "critic")
    assert plan(critic).setting.anatomy.critic
    assert not plan(actor).setting.anatomy.critic


def test_overrides_win_over_the_file() -> None:
    (actor,) = read(AREAL, "actor.backend=archon:d8t2", "actor.ppo_n_minibatches=4", "gconfig.n_samples=8").engines
    assert actor.layout == "archon:d8t2"
    assert actor.sequences.number == 256 * 8 // 4


def test_a_given_model_replaces_that_of_the_actor_and_of_roles_with_its_path() -> None:
    run = read(AREAL, "actor.kl_ctl=0.1", model="qwen3-8b")
    assert [engine.model.name for engine in run.engines] == ["qwen3-8b", "qwen3-8b"]
    apart = read(AREAL, "actor.kl_ctl=0.1", "ref.path=Qwen/Qwen3-4B", model="qwen3-8b")
    assert [engine.model.name for engine in apart.engines] == ["qwen3-8b", "Qwen/Qwen3-4B"]


def test_a_given_length_replaces_the_longest() -> None:
    assert read(AREAL, seq=700).engines[0].sequences.length == 700


def test_an_unknown_hub_id_is_a_problem_that_leads_to_the_option_model() -> None:
    run = read(AREAL, "actor.path=me/mine")
    assert run.engines == ()
    assert any("actor.path: found 'me/mine'" in problem and "--model" in problem for problem in run.problems)


def test_engines_that_exceed_the_cluster_are_a_problem() -> None:
    run = read(AREAL, "cluster.n_nodes=3")
    assert any("need 32 ranks on 24" in problem for problem in run.problems)


def test_errors_that_concern_no_engine_are_notes() -> None:
    run = read(EXAMPLES / "sft_jsonl.yaml")
    assert run.problems == ()
    assert any("a run stops at: data.path" in note for note in run.notes)


@pytest.mark.parametrize("override", ["actor.nothing=1", "actor.mb_spec.n_mbs=none", "no_such=1"])
def test_a_wrong_option_of_a_file_is_an_error(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0].rpartition(".")[2]):
        read(AREAL, override)


def test_the_decisions_of_a_plan_contain_those_of_a_dry_run() -> None:
    overrides = ("actor.backend=archon:p2", "actor.archon.pp_schedule=ZBVZeroBubble", "actor.batch_align_to=3")
    loaded = read_config(OWN, overrides, root=ROOT, registry=registry(), allow_missing=True)
    dry = {decision for decision in plan_run(loaded, registry()).engine_decisions if decision.option[:6] == "actor."}
    assert "actor.mb_spec.n_mbs" in {decision.option for decision in dry}
    assert dry <= set(plan(read(OWN, *overrides).engines[0]).decisions)


def test_answers_to_a_prompt_stay_in_one_micro_batch_and_a_reward_model_has_values() -> None:
    (actor,) = read(EXAMPLES / "rw_jsonl.yaml", "actor.mb_spec.max_tokens_per_mb=4096", seq=1024).engines
    planned = plan(actor)
    assert planned.setting.anatomy.critic
    assert planned.setting.tokens.per_micro_batch == 4096
    (odd,) = read(EXAMPLES / "rw_jsonl.yaml", "actor.mb_spec.max_tokens_per_mb=3072", seq=1024).engines
    assert plan(odd).setting.tokens.per_micro_batch == 2048


def test_micro_batches_hold_whole_sequences_and_are_as_many_as_stages_at_least() -> None:
    (actor,) = read(AREAL, "actor.mb_spec.max_tokens_per_mb=10240", "data.batch_size=4", "gconfig.n_samples=2").engines
    tokens = plan(actor).setting.tokens
    assert len(plan(actor).setting.stage_plan) == 8
    assert (tokens.n_micro_batches, tokens.per_micro_batch) == (8, 2048)
    (whole,) = read(AREAL, "actor.backend=archon:d4").engines
    tokens = plan(whole).setting.tokens
    assert tokens.per_micro_batch == 5 * 2048
    assert tokens.n_micro_batches == -(-256 // 5)


def test_micro_batches_are_padded_to_what_ranks_share() -> None:
    assert plan(flags(layout="archon:t2c4d2", tokens=1001, seq=77)).setting.tokens.per_micro_batch == 1008


def test_options_left_out_have_the_defaults_of_the_engine() -> None:
    request = flags()
    assert request.config.archon == ArchonOptions()
    assert request.explicit == frozenset()
    setting = plan(request).setting
    assert (setting.checkpointing, setting.compiles, setting.reshards, setting.optimizer) == (
        "selective",
        True,
        True,
        "adamw",
    )


def test_written_options_reach_the_setting() -> None:
    request = flags(
        layout="archon:p2d2", schedule="1F1B", ac_mode="full", dtype="float32", optimizer="muon", n_mbs=7, offload=True
    )
    setting = plan(request).setting
    assert setting.schedule is not None
    assert setting.schedule.name == "1F1B"
    assert (setting.checkpointing, setting.types.compute, setting.optimizer) == ("full", 4, "muon")
    assert setting.tokens.n_micro_batches == 7
    assert setting.offloads
    assert {"actor.archon.pp_schedule", "actor.dtype", "actor.mb_spec.n_mbs"} <= request.explicit


def test_a_schedule_that_splits_backward_passes_decides_against_defaults() -> None:
    planned = plan(flags(layout="archon:p2d2", schedule="ZBVZeroBubble"))
    assert (planned.setting.checkpointing, planned.setting.compiles) == ("full", False)
    assert {"actor.archon.ac_mode", "actor.archon.enable_compile"} <= {d.option for d in planned.decisions}


def test_roles_without_training_have_no_optimizer() -> None:
    assert not plan(flags(role="ref")).setting.trains
    assert plan(flags(role="critic")).setting.anatomy.critic
    with pytest.raises(ConfigError, match=r"--role: found 'acter'.*actor"):
        flags(role="acter")


def test_messages_about_one_engine_name_its_command_line_options() -> None:
    text = "actor.archon.ac_mode: found x; set archon.pp_schedule=1F1B or archon.enable_compile=false"
    assert in_flags(text, "actor") == "--ac-mode: found x; set --schedule 1F1B or --compile false"
