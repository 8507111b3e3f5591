import json
from collections.abc import Callable
from pathlib import Path

import pytest

from archon_core.config.loading import LoadedConfig
from archon_core.plugins import (
    AlgorithmSpec,
    LauncherSpec,
    ModelSpec,
    MoESpec,
    PipelineSpec,
    Registry,
    RewardSpec,
    ScheduleSpec,
    TrainEngineSpec,
)
from archon_train.preflight import plan_run
from archon_train.run_plan import RunPlan, install_commands

from .conftest import plugin, rl_plugin, rollout_plugin

Load = Callable[..., LoadedConfig]
MakeRegistry = Callable[..., Registry]

RUNNABLE = "actor: {model_config: {model_type: tiny}}\n"
VALUED = f"algorithm: valued\n{RUNNABLE}"


@pytest.fixture
def complete(make_registry: MakeRegistry) -> Registry:
    """Everything that the layouts below need, with an engine that runs all axes."""
    return make_registry(
        rl_plugin(),
        rollout_plugin(),
        plugin(
            "all",
            TrainEngineSpec(name="able", target="json:loads", axes="dtpcer", model_type="json:loads"),
            TrainEngineSpec(name="careful", target="json:loads", axes="", preview="archon_fake_options:refuse_all"),
            ModelSpec(
                name="tiny", target="json:loads", model_types=("tiny",), capabilities=frozenset({"tp", "cp", "critic"})
            ),
            ModelSpec(name="tiny_moe", target="json:loads", model_types=("tiny_moe",), needs=("moe",)),
            ModelSpec(name="shares", target="json:loads", model_types=("shares",), capabilities=frozenset({"tree"})),
            ScheduleSpec(name="Interleaved1F1B", target="json:loads", stages_per_rank=None),
            ScheduleSpec(name="ZeroBubble", target="json:loads", splits_backward=True),
            ScheduleSpec(name="InRounds", target="json:loads", multiple_of_ranks=True),
            PipelineSpec(name="pipeline", target="json:loads", split="archon_fake_options:split"),
            AlgorithmSpec(
                name="valued",
                target="json:loads",
                needs=("inference_engine",),
                sections=("critic",),
                separable=("critic",),
            ),
            LauncherSpec(name="ray", target="json:loads"),
        ),
    )


def plan(load: Load, registry: Registry, text: str, *overrides: str) -> RunPlan:
    return plan_run(load(text, overrides, plugins=registry, allow_missing=True), registry)


def config_errors(found: RunPlan) -> list[str]:
    return [obstacle.text for obstacle in found.obstacles if obstacle.kind == "config"]


def environment_errors(found: RunPlan) -> list[str]:
    return [obstacle.text for obstacle in found.obstacles if obstacle.kind == "environment"]


def test_nothing_stops_a_configuration_that_can_run(load: Load, complete: Registry) -> None:
    found = plan(load, complete, RUNNABLE)
    assert found.can_run
    assert not found.is_wrong
    assert [str(share) for share in found.shares] == ["actor archon:d1: 1", "rollout local: 0, on the ranks of actor"]


def test_what_engines_do_other_than_asked_on_any_device_is_known_and_strict_refuses_it(
    load: Load, complete: Registry
) -> None:
    options = ("actor.archon.ac_mode=full", "actor.archon.selective_ac_option=2", "actor.archon.enable_compile=true")
    found = plan(load, complete, RUNNABLE, *options)
    assert found.can_run
    changed = {("actor.archon.ac_mode", "none"), ("actor.archon.selective_ac_option", "op")}
    assert {(decision.option, decision.effective) for decision in found.engine_decisions} == changed
    [refusal] = config_errors(plan(load, complete, RUNNABLE, *options, "actor.archon.strict=true"))
    assert refusal.startswith("actor.archon.strict: found true, and settings that Archon would change; write")
    assert all(option in refusal for option, _ in changed)


def test_engines_inherit_the_actors_layout_and_share_its_ranks(load: Load, complete: Registry) -> None:
    found = plan(load, complete, VALUED + "ref: {}\ncritic: {backend: 'able:d2'}\n", "actor.backend=able:d4")
    assert {role: str(layout) for role, layout in found.layouts.items()} == {
        "actor": "able:d4",
        "rollout": "local",
        "critic": "able:d2",
        "ref": "able:d4",
    }
    assert {share.role: share.ranks for share in found.shares} == {"actor": 4, "rollout": 0, "critic": 2, "ref": 0}


def test_a_model_on_another_number_of_ranks_than_the_actor_is_refused(load: Load, complete: Registry) -> None:
    found = plan(load, complete, VALUED + "ref: {}\ncritic: {backend: 'able:d2'}\n", "actor.backend=able:d4")
    assert config_errors(found) == [
        "critic.backend: found able:d2, on 2 ranks; a model on the actor's ranks (able:d4) needs 4; write "
        "critic.scheduling_strategy.type=separation to give it its own ranks, choose a layout of 4 ranks, or leave "
        "critic.backend out to inherit the actor's"
    ]
    separated = plan(
        load,
        complete,
        VALUED + "critic: {backend: 'able:d2'}\n",
        "actor.backend=able:d4",
        "critic.scheduling_strategy.type=separation",
    )
    assert separated.can_run
    assert plan(load, complete, VALUED + "critic: {backend: 'able:d2t2'}\n", "actor.backend=able:d4").can_run


def test_the_archon_engine_runs_all_axes_of_a_dense_model(load: Load, complete: Registry) -> None:
    assert plan(load, complete, RUNNABLE, "actor.backend=archon:r2d2p2c2t2", "cluster.n_gpus_per_node=32").can_run


def test_every_malformed_layout_is_reported_not_only_the_first(load: Load, complete: Registry) -> None:
    found = plan(load, complete, RUNNABLE + "ref: {backend: 'able:d0'}\nrollout: {backend: 'sglang:p2'}\n")
    texts = "\n".join(config_errors(found))
    assert "ref.backend" in texts
    assert "rollout.backend" in texts
    assert found.is_wrong


def test_a_malformed_actor_is_reported_once_for_all_that_inherit_from_it(load: Load, complete: Registry) -> None:
    rest = "ref: {backend: '${actor.backend}'}\ncritic: {}\n"
    (text,) = config_errors(plan(load, complete, RUNNABLE + rest, "actor.backend=able:d4d4"))
    assert text.startswith("actor.backend 'able:d4d4'")
    areal = "total_train_epochs: 1\n" + RUNNABLE + rest
    (text,) = config_errors(plan(load, complete, areal, "actor.backend=megatron:d4c0"))
    assert text.startswith("actor.backend 'archon:d4c0'")
    assert text.endswith("\n  the file has 'megatron:d4c0': the Archon engine has Megatron's layouts")


def test_engines_that_do_not_fit_the_cluster_are_refused_with_the_sum(load: Load, complete: Registry) -> None:
    found = plan(load, complete, RUNNABLE, "actor.backend=able:d4t2", "cluster.n_gpus_per_node=4")
    (text,) = config_errors(found)
    assert "need 8 ranks on 4" in text


def test_missing_packages_are_named_with_what_they_are_for(load: Load, make_registry: MakeRegistry) -> None:
    bare = make_registry()
    found = plan(
        load,
        bare,
        "actor: {path: a/b, eps_clip: 0.3, backend: 'archon:(attn:d1p4t2c2|ffn:d1p4t1e4)'}\n"
        "rollout: {backend: 'sglang:d4t4'}\nscheduler: {type: ray}\ncluster: {n_nodes: 4}\nreward: gsm8k\n",
    )
    needs = {need.package.name: need.purposes for need in found.needs}
    assert needs == {
        "archon-rl": (
            "actor.eps_clip",
            "algorithm: grpo",
            "data.dataset: jsonl",
            "reward: gsm8k",
        ),
        "archon-sglang": ("rollout.backend: sglang",),
        "archon-rollout": ("rollout.backend: sglang",),
        "archon-ray": ("scheduler.type: ray",),
        "archon-pipeline": ("actor.archon.pp_schedule: Interleaved1F1B",),
        "archon-moe": ("the experts of archon:(attn:d1p4t2c2|ffn:d1p4t1e4)",),
    }
    assert not found.is_wrong
    assert list(install_commands(found.needs)) == [
        "pip install archon-moe archon-pipeline archon-ray archon-rl archon-rollout archon-sglang"
    ]


def test_a_package_that_is_too_old_is_upgraded(load: Load, complete: Registry) -> None:
    found = plan(load, complete, RUNNABLE, "reward=exact")
    assert list(install_commands(found.needs)) == ["pip install --upgrade archon-rl"]


def test_a_name_that_no_package_has_is_a_mistake_in_the_configuration(load: Load, complete: Registry) -> None:
    found = plan(load, complete, RUNNABLE, "algorithm=grpp", "scheduler.type=rey", "reward=gsm9k")
    texts = config_errors(found)
    assert [text.partition(":")[0] for text in texts] == ["algorithm", "reward", "scheduler.type"]
    assert "did you mean 'grpo'?" in texts[0]


def test_a_weight_transport_that_is_written_must_exist(load: Load, complete: Registry) -> None:
    found = plan(load, complete, RUNNABLE, "rollout.weight_transport=nonsense")
    [text] = config_errors(found)
    assert text.startswith("rollout.weight_transport: weight transport 'nonsense': no installed plugin provides it")
    assert plan(load, complete, RUNNABLE).can_run


def test_rollout_is_looked_up_for_algorithms_that_sample(load: Load, make_registry: MakeRegistry) -> None:
    without = make_registry(
        rl_plugin(), plugin("m", ModelSpec(name="tiny", target="json:loads", model_types=("tiny",)))
    )
    assert plan(load, without, RUNNABLE, "algorithm=sft").can_run
    assert [n.package.name for n in plan(load, without, RUNNABLE).needs] == ["archon-rollout"]
    unused = plan(load, without, RUNNABLE, "algorithm=sft", "rollout.backend=sglang:d8")
    assert unused.can_run
    assert [share.role for share in unused.shares] == ["actor"]


def test_axes_that_the_engine_cannot_run_are_refused_by_name(load: Load, complete: Registry) -> None:
    found = plan(load, complete, RUNNABLE + "ref: {}\n", "actor.backend=careful:d2t2")
    texts = [text for text in environment_errors(found) if text.startswith("actor.backend")]
    (text,) = texts
    assert "data parallelism (d2) and tensor parallelism (t2)" in text


def test_what_an_engine_says_it_cannot_do_is_reported_per_model(load: Load, complete: Registry) -> None:
    found = plan(load, complete, RUNNABLE + "ref: {}\n", "actor.backend=careful:d1")
    assert config_errors(found) == [
        "actor refused ['actor', 'actor.backend', 'actor.model_config']",
        "ref refused",
    ]


def test_a_schedule_is_needed_only_with_several_stages(load: Load, complete: Registry) -> None:
    nothing = "actor.archon.pp_schedule=Nothing"
    assert plan(load, complete, RUNNABLE, nothing).can_run
    (text,) = config_errors(plan(load, complete, RUNNABLE, nothing, "actor.backend=archon:p2"))
    assert text.startswith("actor.archon.pp_schedule: ")
    assert plan(load, complete, RUNNABLE, nothing, "actor.backend=able:p2").can_run, "it has pipelines of its own"


def test_a_model_that_inherits_a_pipeline_has_a_schedule_of_its_own(load: Load, complete: Registry) -> None:
    nothing = "ref: {archon: {pp_schedule: Nothing}}\n"
    (text,) = config_errors(plan(load, complete, RUNNABLE + nothing, "actor.backend=archon:p2"))
    assert text.startswith("ref.archon.pp_schedule: ")


def test_somebody_elses_schedule_needs_what_runs_schedules(load: Load, make_registry: MakeRegistry) -> None:
    model = ModelSpec(name="tiny", target="json:loads", model_types=("tiny",))
    spiral = ScheduleSpec(name="Spiral", target="json:loads")
    registry = make_registry(rl_plugin(), rollout_plugin(), plugin("all", model, spiral))
    found = plan(load, registry, RUNNABLE, "actor.backend=archon:p2", "actor.archon.pp_schedule=Spiral")
    assert [(n.package.name, n.purposes) for n in found.needs] == [
        ("archon-pipeline", ("the stages of archon:p2",)),
    ]
    assert list(install_commands(found.needs)) == ["pip install archon-pipeline"]


def test_what_cuts_models_is_asked_whether_there_are_layers_enough(
    load: Load, complete: Registry, tmp_path: Path
) -> None:
    deep = "actor: {backend: 'archon:p2', model_config: {model_type: tiny, num_hidden_layers: 9}}\n"
    (text,) = config_errors(plan(load, complete, deep))
    assert text == "actor: 9 layers on 2 ranks, Interleaved1F1B: too few"
    assert plan(load, complete, deep, "actor.model_config.num_hidden_layers=10").can_run
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "tiny", "num_hidden_layers": 9}))
    inherits = f"ref: {{path: '{tmp_path}'}}\n"
    (text,) = config_errors(plan(load, complete, RUNNABLE + inherits, "actor.backend=archon:p2"))
    assert text == "ref: 9 layers on 2 ranks, Interleaved1F1B: too few"


def test_ranks_that_cannot_share_the_attention_heads_are_known_before_a_run(load: Load, complete: Registry) -> None:
    heads = "{model_type: tiny, num_attention_heads: 8, num_key_value_heads: 1, vocab_size: 257}"
    text = f"actor: {{backend: 'archon:t3', model_config: {heads}}}\n"
    assert config_errors(plan(load, complete, text)) == [
        "actor.backend 'archon:t3': found t3; it must divide the model's attention heads (8); the largest t below 3 "
        "that works is t2"
    ]
    ulysses = "actor.archon.cp_style=ulysses"
    (found,) = config_errors(plan(load, complete, text, "actor.backend=archon:c6", ulysses))
    assert "actor.archon.cp_style: found ulysses with c6" in found
    # Of key heads and vocabulary rows there may be any number, and of context ranks that gather keys.
    assert plan(load, complete, text, "actor.backend=archon:c2t4", ulysses).can_run
    gathered = plan(load, complete, text, "actor.backend=archon:c6")
    assert gathered.can_run
    (style,) = [decision for decision in gathered.engine_decisions if decision.option == "actor.archon.cp_style"]
    assert (style.requested, style.effective) == ("auto", "hybrid: heads over 2 ranks, keys and values over 3")


def test_a_model_that_cannot_share_prefixes_is_known_before_a_run(load: Load, complete: Registry) -> None:
    (found,) = config_errors(plan(load, complete, RUNNABLE, "actor.enable_tree_training=true"))
    assert found.startswith("actor.enable_tree_training: found true; model 'tiny' cannot continue one prefix")
    able = RUNNABLE.replace("tiny", "shares, rope_scaling: {rope_type: dynamic}, max_position_embeddings: 64")
    (found,) = config_errors(plan(load, complete, able, "actor.enable_tree_training=true"))
    assert "rope_type 'dynamic', which rotates sequences above 64 tokens by their length" in found
    assert plan(load, complete, able).can_run


def test_what_a_pipeline_changes_in_micro_batches_is_known_before_a_run(load: Load, complete: Registry) -> None:
    deep = "actor: {backend: 'archon:p2', model_config: {model_type: tiny, num_hidden_layers: 10}}\n"
    found = plan(load, complete, deep)
    assert [(d.option, d.requested, d.effective) for d in found.engine_decisions] == [("actor.mb_spec.n_mbs", "1", "4")]
    (text,) = config_errors(plan(load, complete, deep, "actor.archon.strict=true"))
    assert "actor.mb_spec.n_mbs: found 1, would use 4" in text
    assert plan(load, complete, deep, "actor.archon.strict=true", "actor.mb_spec.n_mbs=4").can_run
    divided = ("actor.archon.pp_schedule=InRounds", "actor.mb_spec.n_mbs=6", "actor.mb_spec.n_mbs_divisor=3")
    found = plan(load, complete, deep, *divided)
    assert [(d.option, d.requested, d.effective) for d in found.engine_decisions] == [
        ("actor.mb_spec.n_mbs_divisor", "3", "6"),
    ]


def test_what_a_schedule_that_splits_backward_changes_is_known_before_a_run(load: Load, complete: Registry) -> None:
    options = ("actor.backend=archon:p2", "actor.archon.pp_schedule=ZeroBubble", "actor.gradient_checkpointing=true")
    found = plan(load, complete, RUNNABLE, *options)
    assert found.can_run
    changed = {("actor.archon.enable_compile", "false"), ("actor.archon.ac_mode", "full")}
    assert {(decision.option, decision.effective) for decision in found.engine_decisions} == changed
    (text,) = config_errors(plan(load, complete, RUNNABLE, *options, "actor.archon.enable_compile=true"))
    assert text.startswith("actor.archon.enable_compile: found true with a schedule that splits the backward pass")
    assert "strict" in "".join(config_errors(plan(load, complete, RUNNABLE, *options, "actor.archon.strict=true")))


def test_stages_without_a_pipeline_are_told_and_change_nothing(load: Load, complete: Registry) -> None:
    found = plan(load, complete, RUNNABLE, "actor.archon.pp_layers_per_stage=2")
    assert found.can_run
    assert [(d.option, d.requested, d.effective) for d in found.engine_decisions] == [
        ("actor.archon.pp_layers_per_stage", "2", "default")
    ]
    assert not plan(
        load, complete, RUNNABLE, "actor.backend=archon:p2", "actor.archon.pp_layers_per_stage=2"
    ).engine_decisions


def test_experts_are_known_from_the_models_own_configuration(
    load: Load, complete: Registry, make_registry: MakeRegistry
) -> None:
    text = "actor: {model_config: {model_type: tiny_moe}}\n"
    assert [n.package.name for n in plan(load, complete, text).needs] == ["archon-moe"]
    specs = [spec for status in complete.plugins for spec in status.specs if status.name == "all"]
    with_moe = make_registry(
        rl_plugin(), rollout_plugin(), plugin("all", *specs), plugin("moe", MoESpec(name="moe", target="json:loads"))
    )
    assert plan(load, with_moe, text).can_run
    assert plan(load, with_moe, text, "actor.archon.moe=other").is_wrong


def test_a_layout_that_spreads_experts_of_a_dense_model_is_wrong(load: Load, complete: Registry) -> None:
    (text,) = config_errors(plan(load, complete, RUNNABLE, "actor.backend=able:d2e2"))
    assert "for a model that has no experts" in text


def test_the_model_type_is_read_from_a_checkpoint_folder(load: Load, complete: Registry, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    found = plan(load, complete, f"actor: {{path: '{tmp_path}'}}\n")
    assert [(n.package.name, n.purposes) for n in found.needs] == [("archon-models-qwen", ("actor.path: qwen3",))]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nobody"}))
    (text,) = environment_errors(plan(load, complete, f"actor: {{path: '{tmp_path}'}}\n"))
    assert "nobody" in text


def test_a_model_has_to_come_from_somewhere(load: Load, complete: Registry) -> None:
    (text,) = config_errors(plan(load, complete, "seed: 1\n"))
    assert text.startswith("actor: found neither actor.path nor actor.model_config")


@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "~/nowhere", "a/b/c", "a b"])
def test_a_checkpoint_folder_that_is_not_there_stops_the_run(load: Load, complete: Registry, path: str) -> None:
    (text,) = environment_errors(plan(load, complete, f"actor: {{path: '{path}'}}\nref: {{path: '{path}'}}\n"))
    assert text == f"actor.path: found no folder {path!r}; give a checkpoint folder or a hub id (owner/name)"


def test_a_hub_id_is_only_noted(load: Load, complete: Registry) -> None:
    found = plan(load, complete, "actor: {path: Qwen/Qwen3-8B}\n")
    assert found.can_run
    (note,) = found.notes
    assert "Qwen/Qwen3-8B" in note


def test_a_data_file_that_is_not_there_stops_the_run(load: Load, complete: Registry, tmp_path: Path) -> None:
    missing = tmp_path / "train.jsonl"
    (text,) = environment_errors(plan(load, complete, RUNNABLE, f"data.path={missing}"))
    assert text.startswith("data.path: found no file or folder")
    missing.write_text("")
    assert plan(load, complete, RUNNABLE, f"data.path={missing}").can_run
    assert plan(load, complete, RUNNABLE, "data.path=openai/gsm8k").can_run
    others = (f"data.validation_path={missing}/held_out.jsonl", f"tokenizer_path={missing}/tokenizer")
    found = environment_errors(plan(load, complete, RUNNABLE, *others))
    assert [text.partition(": found no file or folder")[0] for text in found] == [
        "data.validation_path",
        "tokenizer_path",
    ]


def test_a_name_of_ours_that_two_plugins_provide_asks_for_no_package(load: Load, make_registry: MakeRegistry) -> None:
    # arithmetic is a reward that archon-rl is known to bring, qwen3 a model of archon-models-qwen
    def both(name: str) -> tuple[RewardSpec, ModelSpec]:
        return (
            RewardSpec(name="arithmetic", target="json:loads"),
            ModelSpec(name=name, target="json:loads", model_types=("qwen3",)),
        )

    registry = make_registry(rl_plugin(), rollout_plugin(), plugin("one", *both("a")), plugin("two", *both("b")))
    found = plan(load, registry, "actor: {model_config: {model_type: qwen3}}\nreward: arithmetic\n")
    assert not found.needs
    reward, model = environment_errors(found)
    assert reward.startswith("reward: reward 'arithmetic' is provided by ")
    assert "leave one of them out" in reward
    assert "is served by a (" in model


def test_a_model_that_is_asked_for_by_name_is_looked_up_by_that_name(load: Load, complete: Registry) -> None:
    [unknown] = environment_errors(plan(load, complete, RUNNABLE, "actor.archon.model=tinny"))
    assert unknown.startswith("actor.archon.model: ")
    assert "did you mean 'tiny'" in unknown
    missing = plan(load, complete, RUNNABLE, "actor.archon.model=hf")
    assert [(need.package.name, need.purposes) for need in missing.needs] == [
        ("archon-models-hf", ("actor.archon.model: hf",))
    ]


WITH_EXPERTS = "actor: {model_config: {model_type: tiny_moe}}\n"
REPLAY = "actor.archon.moe_routing_replay=true"
TOLD = "rollout.return_routed_experts=true"


@pytest.fixture
def with_experts(complete: Registry) -> Registry:
    complete.add(MoESpec(name="moe", target="json:loads", check="archon_fake_options:check_experts"))
    return complete


def test_a_replay_of_routing_needs_experts_and_a_rollout_that_tells_them(load: Load, with_experts: Registry) -> None:
    [refusal] = config_errors(plan(load, with_experts, WITH_EXPERTS, REPLAY))
    assert refusal.endswith("set rollout.return_routed_experts=true, too")
    assert plan(load, with_experts, WITH_EXPERTS, REPLAY, TOLD).can_run
    [refusal] = config_errors(plan(load, with_experts, RUNNABLE, REPLAY, TOLD))
    assert "model 'tiny' has no experts; set it to false" in refusal
    [refusal] = config_errors(plan(load, with_experts, WITH_EXPERTS, REPLAY, TOLD, "algorithm=sft"))
    assert "this algorithm samples no completions" in refusal


@pytest.mark.parametrize(("text", "told"), [(WITH_EXPERTS, "actor: experts True"), (RUNNABLE, "actor: experts False")])
def test_who_builds_experts_is_asked_before_anything_runs(
    load: Load, with_experts: Registry, text: str, told: str
) -> None:
    assert config_errors(plan(load, with_experts, text, "actor.archon.moe_router_dtype=null")) == [told]


def test_one_of_several_that_build_experts_must_be_chosen(load: Load, with_experts: Registry) -> None:
    with_experts.add(MoESpec(name="other", target="json:loads"))
    [refusal] = config_errors(plan(load, with_experts, WITH_EXPERTS))
    assert refusal.startswith("actor.archon.moe: found none chosen and several installed; allowed are moe, other")
    assert plan(load, with_experts, WITH_EXPERTS, "actor.archon.moe=other").can_run
    assert plan(load, with_experts, RUNNABLE).can_run


def test_a_run_on_images_has_no_other_obstacle(load: Load, complete: Registry, tmp_path: Path) -> None:
    images = "actor: {path: Qwen/Qwen2-VL-7B, backend: 'able:d4'}\ncluster: {n_gpus_per_node: 1}\n"
    (text,) = config_errors(plan(load, complete, images))
    assert text.startswith("visual models and data sets: found actor.path=Qwen/Qwen2-VL-7B; allowed are text models")
    folder = tmp_path / "my-VL-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    assert not any("visual" in error for error in config_errors(plan(load, complete, f"actor: {{path: {folder}}}\n")))
    (folder / "config.json").write_text('{"model_type": "qwen3", "vision_config": {}}')
    assert "visual" in config_errors(plan(load, complete, f"actor: {{path: {folder}}}\n"))[0]


def test_a_file_without_an_actor_has_no_other_obstacle(load: Load, complete: Registry) -> None:
    found = plan(load, complete, "rollout: {backend: 'sglang:d9'}\ncluster: {n_gpus_per_node: 1}\n")
    assert not found.needs
    (text,) = config_errors(found)
    assert text.startswith("actor: found neither actor.path nor actor.model_config")


def test_a_cluster_of_cpus_runs_any_number_of_ranks(load: Load, complete: Registry) -> None:
    text = "actor: {model_config: {model_type: qwen3}, backend: 'able:d64'}\ncluster: {n_gpus_per_node: 0}\n"
    assert not any("cluster" in error for error in config_errors(plan(load, complete, text)))


def test_a_function_of_the_users_own_module_is_checked_without_importing_it(
    load: Load, complete: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text("import not_installed\ndef score(prompt, completion, record): ...\n")
    assert plan(load, complete, RUNNABLE, "reward=my_rewards:score").obstacles == ()
    wrong = plan(load, complete, RUNNABLE, "reward=my_rewards.scor")
    assert wrong.is_wrong
    [text] = config_errors(wrong)
    assert text.startswith(f"reward: found no 'scor' in {tmp_path}/my_rewards.py; it defines score;")
    [text] = config_errors(plan(load, complete, RUNNABLE, "reward=timeit:timeit"))
    assert text.startswith("reward: found no timeit.py in ")
