"""Every option of AReaL is honoured, without effect or refused; what AReaL has not is unknown."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from archon_core.config.loading import LoadedConfig
from archon_core.config.raw import RawMapping, merge, nested
from archon_core.config.sections import build_schema, choose_sections
from archon_core.config.typed import knows, untyped
from archon_core.config.yaml_file import parse_yaml
from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError
from archon_core.plugins import Registry
from archon_train.areal.facts import classes, facts, names_in, section_classes
from archon_train.areal.ignored import judge, rule_for
from archon_train.areal.keys import fits
from archon_train.areal.names import new_name
from archon_train.areal.removed_names import translate_removed
from archon_train.areal.rules import IGNORED
from archon_train.experiment import ROOT, ExperimentConfig

Load = Callable[..., LoadedConfig]


ELSEWHERE = {"recover.mode", "allocation_mode", "data.hf.split", "data.hf.validation_split"}
"""Options that ``archon_train.areal.meaning`` turns into others before any is judged, and options of archon-rl."""


def options(section: str = "") -> list[str]:
    """The dotted names of AReaL's options; a section that one rule covers counts as one option."""
    found: list[str] = []
    for name in names_in(section):
        path = f"{section}.{name}".lstrip(".")
        is_section = bool(section_classes(facts(path))) and rule_for(path) is None
        found += options(path) if is_section and path.count(".") < 5 else [path]
    return found


def decided(loaded: LoadedConfig) -> dict[str, tuple[str, str]]:
    """The decisions except those about defaults."""
    made = (d for d in loaded.decisions if "left out (" not in d.requested and "'s default; " not in d.reason)
    return {d.option: (d.requested, d.effective) for d in made}


def test_the_facts_are_those_of_one_release() -> None:
    assert len(classes()) > 40
    assert {fact.owner for fact in facts("actor.kl_ctl")} == {"PPOActorConfig"}
    assert facts("actor.megatron.ddp.bucket_size")[0].default == "None"
    assert facts("train_dataset.batch_size")[0].owner == "_DatasetConfig"
    assert not facts("actor.nonsense")
    assert "lr" in names_in("critic.optimizer")


def test_every_option_of_areal_has_an_outcome(make_registry: Callable[..., Registry]) -> None:
    schema = build_schema(ExperimentConfig, choose_sections(make_registry(), RawMapping({}), ROOT).used)
    node, rest = parse_yaml("x: a value that no option has by default", "f").entries["x"], parse_yaml("seed: 1", "f")
    without = []
    for option in options():
        path = new_name(option) or option
        if not (knows(schema, path) or path in ELSEWHERE):
            verdict, rule = judge(path, node, merge(rest, nested(path, node))), rule_for(path)
            is_translated = rule is not None and rule.otherwise == "translated"
            if not (verdict.known and (verdict.decision or verdict.problem or is_translated)):
                without.append(option)
    assert not without


def test_rows_of_the_table_name_options_that_areal_has_or_had() -> None:
    former = {"allocation_mode", "async_training", "launcher", "rollout.schedule_policy", "rollout.openai"}
    former |= {"actor.group_adv_norm", "actor.group_size", "actor.vision_dp", "actor.optimizer.offload"}
    former |= {"actor.scheduling_spec.additional_bash_cmds"}  # in the entries of a list
    former |= {"actor.tree_training_mode", "actor.dta_block_size", "trainer.eval_before_train"}
    known = set(options()) | {f"{role}.{name}" for role in ("actor", "ref", "critic") for name in names_in("actor")}
    known |= {
        path
        for section in ("rollout.agent", "actor.megatron", "actor.megatron.ddp", "actor.archon")
        for path in (f"{section}.{name}" for name in names_in(section))
    }
    for rule in IGNORED:
        assert any(fits(rule.path, path) for path in known | former), rule.path


def test_reasons_hold_for_every_rollout_engine_and_every_reward() -> None:
    reasons = {rule.path: rule.reason for rule in IGNORED}
    assert not [path for path, reason in reasons.items() if path.startswith("rollout.") and "trainer's rank" in reason]
    assert reasons["rollout.routing_strategy"] == "a request goes to the server with the least work"
    assert "processes beside the trainer" in reasons["scheduler.functioncall_service_domain"]
    assert "reward=model" in reasons["scheduler.reward_model_path"]


def test_a_refusal_says_what_would_be_needed_and_lists_the_options_of_its_feature(load: Load) -> None:
    with pytest.raises(ConfigError) as error:
        load(
            "actor: {archon: {fp8_config: {mode: blockwise}}}\n"
            "ref: {archon: {fp8_config: '${actor.archon.fp8_config}'}}\n"
            "total_train_epochs: 1\n"
        )
    text = str(error.value)
    assert "config.yaml:1: actor.archon.fp8_config: found" in text
    assert "FP8 training is not part of this version" in text
    assert text.endswith("scaled FP8 matrix products in the engine (the same holds for ref.archon.fp8_config)")
    assert "\n" not in text


def test_a_section_that_areal_leaves_null_asks_for_something_by_being_there() -> None:
    tree = parse_yaml("actor: {rejection_sampling: {upper: 5.0}}\n", "f")
    node, null = tree.get("actor.rejection_sampling"), parse_yaml("x: null", "f").entries["x"]
    assert node is not None
    problem = judge("actor.rejection_sampling", node, tree).problem
    assert problem is not None
    assert problem.text.startswith("actor.rejection_sampling: found {upper: 5.0}; allowed is null: this version does")
    assert judge("actor.rejection_sampling", null, nested("actor.rejection_sampling", null)).problem is None


def test_options_of_a_script_are_one_decision(load: Load) -> None:
    text = "total_train_epochs: 1\neconfig: {domain: airline}\nmax_turns: 3\nmodel_path: m\n"
    text += "tokenizer_path: ${model_path}\n"
    loaded = load(text)
    assert loaded.config.tokenizer_path == "m"
    assert decided(loaded) == {"econfig, max_turns, model_path": ("{domain: airline}, 3, m", "no effect")}


@pytest.mark.parametrize("override", ["econfig.domain=retail", "max_turns=4", "turns=4"])
def test_an_override_of_a_scripts_option_is_a_mistake(load: Load, override: str) -> None:
    text = "total_train_epochs: 1\neconfig: {domain: airline}\nmax_turns: 3\n"
    with pytest.raises(ConfigError, match=rf"override '{override}': unknown option"):
        load(text, [override])


def test_a_file_in_archons_format_has_no_options_of_a_script(load: Load) -> None:
    with pytest.raises(ConfigError, match="unknown option econfig"):
        load("seed: 1\neconfig: {domain: airline}\n")


def test_references_through_options_without_effect_keep_their_value(load: Load) -> None:
    text = "total_train_epochs: 1\nworkflow: a\neval_workflow: ${workflow}\nexperiment_name: ${eval_workflow}\n"
    assert load(text).config.experiment_name == "a"


def test_options_without_effect_that_refer_to_each_other_are_refused(load: Load) -> None:
    text = "total_train_epochs: 1\nmodel_path: ${judge_engine}\njudge_engine: ${model_path}\n"
    with pytest.raises(ConfigError, match=r"experiment_name: found \$\{.*\}, but there is no option"):
        load(text + "experiment_name: ${model_path}\n")


@pytest.mark.parametrize(
    ("written", "overrides", "workflow", "decision"),
    [
        ("areal.workflow.rlvr.RLVRWorkflow", [], "rlvr", "areal.workflow.rlvr.RLVRWorkflow"),
        ("multi_turn", [], "multi_turn", ""),
        ("my_module:my_workflow", [], "my_module:my_workflow", ""),
        ("areal.workflow.openai.math_agent.MathAgent", ["workflow=multi_turn"], "multi_turn", ""),
        ("rlvr", ["workflow=my_module.my_workflow"], "my_module.my_workflow", ""),
    ],
)
def test_a_class_of_areals_scripts_is_told_from_a_workflow(load: Load, written, overrides, workflow, decision) -> None:
    text = f"total_train_epochs: 1\nworkflow: {written}\neval_workflow: ${{workflow}}\ntrial_name: ${{workflow}}\n"
    loaded = load(text, [*overrides, *(["trial_name=run"] if ":" in written else [])])
    assert loaded.config.workflow == workflow
    assert loaded.config.trial_name == ("run" if ":" in written else decision or workflow)
    noted = [one for one in loaded.decisions if one.option == "workflow"]
    assert [(one.requested, one.effective) for one in noted] == ([(decision, "no effect")] if decision else [])


@dataclass
class Sampling:
    level: str = "token"
    action: str = "mask"
    metric: str = "ratio"
    upper: float = 5.0


@dataclass
class Actor:
    rejection_sampling: Sampling | None = None


@dataclass
class NewRelease:
    actor: Actor = field(default_factory=Actor)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("behave_imp_weight_cap: 3.0", {"level": "token", "action": "mask", "metric": "ratio", "upper": 3.0}),
        (
            "behave_imp_weight_cap: 2, behave_imp_weight_mode: sequence_truncate",
            {"level": "sequence", "action": "clamp", "metric": "ratio", "upper": 2},
        ),
        (
            "behave_imp_weight_mode: token_truncate",
            {"level": "token", "action": "clamp", "metric": "ratio", "upper": 5.0},
        ),
        ("behave_imp_weight_cap: null", None),
        ("behave_imp_weight_cap: 5.0, behave_imp_weight_mode: disabled", None),
    ],
)
def test_the_removed_cap_becomes_rejection_sampling_where_that_exists(written: str, expected: object) -> None:
    decisions: list[Decision] = []
    tree = translate_removed(parse_yaml(f"actor: {{{written}}}\n", "f"), NewRelease, decisions)
    assert untyped(tree) == {"actor": {} if expected is None else {"rejection_sampling": expected}}
    assert [d.option for d in decisions] == [", ".join(f"actor.{part.split(':')[0]}" for part in written.split(", "))]


def test_the_removed_cap_beside_its_successor_is_refused() -> None:
    tree = parse_yaml("actor: {behave_imp_weight_cap: 3, rejection_sampling: {upper: 3}}\n", "f")
    with pytest.raises(ConfigError, match=r"f:1: found actor\.behave_imp_weight_cap, which became actor\.rej"):
        translate_removed(tree, NewRelease, [])


MEGATRON = "total_train_epochs: 1\nactor: {{backend: '{backend}', {rest}}}\n"


def megatron(load: Load, backend: str, rest: str) -> tuple[object, dict[str, tuple[str, str]]]:
    loaded = load(MEGATRON.format(backend=backend, rest=rest))
    made = decided(loaded) | {d.option: (d.requested, d.effective) for d in loaded.decisions if "megatron" in d.option}
    return loaded.config.actor, made


@pytest.mark.parametrize("layout", ["d4p1t2", "(attn:d4p4t2|ffn:d2p4e4)"])
def test_a_megatron_backend_runs_as_archon_with_the_same_sizes(load: Load, layout: str) -> None:
    actor, made = megatron(load, f"megatron:{layout}", "disable_dropout: true")
    assert actor.backend == f"archon:{layout}"  # type: ignore[attr-defined]
    assert made["actor.backend"] == (f"megatron:{layout}", f"archon:{layout}")


@pytest.mark.parametrize(
    ("written", "mode"),
    [
        ("recompute_granularity: full, recompute_method: uniform, recompute_num_layers: 1", "full"),
        ("recompute_granularity: full, recompute_method: block, recompute_num_layers: 4", "full"),
        ("recompute_granularity: selective, recompute_modules: [core_attn]", "selective"),
        ("recompute_granularity: null", "none"),
        ("use_deterministic_algorithms: false", "full"),
    ],
)
def test_recomputation_is_the_nearest_ac_mode(load: Load, written: str, mode: str) -> None:
    rest = f"gradient_checkpointing: true, megatron: {{{written}}}"
    actor, made = megatron(load, "megatron:d1", rest)
    assert actor.archon.ac_mode == mode  # type: ignore[attr-defined]
    assert f"actor.archon.ac_mode={mode}" in {effective for _, effective in made.values()}


def test_an_ac_mode_that_the_file_writes_wins_over_recomputation(load: Load) -> None:
    rest = "gradient_checkpointing: true, megatron: {recompute_granularity: full}, archon: {ac_mode: selective}"
    actor, _ = megatron(load, "megatron:d1", rest)
    assert actor.archon.ac_mode == "selective"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("backend", "virtual", "schedule"),
    [
        ("megatron:d1p2", "virtual_pipeline_parallel_size: 2", "Interleaved1F1B"),
        ("megatron:d1p2", "virtual_pipeline_parallel_size: 1", "1F1B"),
        ("megatron:d1p2", "wrap_with_ddp: true", "1F1B"),
    ],
)
def test_virtual_stages_are_interleaved(load: Load, backend: str, virtual: str, schedule: str) -> None:
    actor, made = megatron(load, backend, f"megatron: {{{virtual}}}")
    assert actor.archon.pp_schedule == schedule  # type: ignore[attr-defined]
    option = "actor.megatron.virtual_pipeline_parallel_size"
    assert made[option][1] == f"actor.archon.pp_schedule={schedule}"


def test_translated_options_have_one_decision_each_and_others_a_reason(load: Load) -> None:
    rest = (
        "megatron: {use_deterministic_algorithms: true, main_params_dtype: float32, moe_router_dtype: null, "
        "moe_router_bias_update_rate: 0.0, moe_z_loss_coeff: null, ddp: {overlap_grad_reduce: true}, "
        "bridge_type: megatron-bridge}"
    )
    actor, made = megatron(load, "megatron:d1", rest)
    assert actor.archon.use_deterministic_algorithms is True  # type: ignore[attr-defined]
    assert (actor.archon.master_dtype, actor.archon.moe_router_dtype) == ("float32", None)  # type: ignore[attr-defined]
    assert {option: effective for option, (_, effective) in made.items()} == {
        "actor.backend": "archon:d1",
        "actor.megatron.use_deterministic_algorithms": "actor.archon.use_deterministic_algorithms=true",
        "actor.megatron.main_params_dtype": "actor.archon.master_dtype=float32",
        "actor.megatron.moe_router_dtype": "actor.archon.moe_router_dtype=null",
        "actor.megatron.ddp.overlap_grad_reduce": "no effect",
        "actor.megatron.bridge_type": "no effect",
    }


def test_options_of_megatron_beside_another_engine_have_no_effect_whatever_they_ask_for(load: Load) -> None:
    _, made = megatron(load, "fsdp:d1", "megatron: {enable_mtp: true, recompute_granularity: null}")
    assert made == {"actor.megatron.enable_mtp, actor.megatron.recompute_granularity": ("true, null", "no effect")}
    with pytest.raises(ConfigError, match=r"unknown option actor\.megatron\.enable_mpt; did you mean 'enable_mtp'"):
        megatron(load, "fsdp:d1", "megatron: {enable_mpt: true}")


def test_the_kernel_for_cuda_is_chosen_by_the_device(load: Load) -> None:
    loaded = load("total_train_epochs: 1\nactor: {archon: {attn_type: varlen}}\n")
    assert loaded.config.actor.archon.attn_type is None
    assert decided(loaded) == {"actor.archon.attn_type": ("varlen", "null")}
    assert load("actor: {archon: {attn_type: varlen}}\n").config.actor.archon.attn_type == "varlen"


def test_a_reference_to_a_megatron_backend_follows_it(load: Load) -> None:
    text = "total_train_epochs: 1\nactor: {backend: 'megatron:d2'}\nref: {backend: '${actor.backend}'}\n"
    assert load(text).config.ref.backend == "archon:d2"


def test_a_file_in_archons_format_keeps_its_megatron_backend(load: Load) -> None:
    assert load("actor: {backend: 'megatron:d1'}\n").config.actor.backend == "megatron:d1"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("actor: {path: Qwen/Qwen2.5-VL-3B-Instruct}\n", "actor.path=Qwen/Qwen2.5-VL-3B-Instruct"),
        ("actor: {path: Qwen/Qwen3.5-2B}\n", "actor.path=Qwen/Qwen3.5-2B"),
        ("actor: {path: google/gemma-3-4b-it}\n", "actor.path=google/gemma-3-4b-it"),
        ("actor: {path: zai-org/GLM-4.5-Air}\nref: {path: zai-org/GLM-4.5V}\n", "ref.path=zai-org/GLM-4.5V"),
        (
            "actor: {path: Qwen/Qwen3-8B}\ntrain_dataset: {path: hiyouga/geometry3k}\n",
            "data.path=hiyouga/geometry3k",
        ),
    ],
)
def test_images_are_refused_by_name_before_anything_else(load: Load, text: str, found: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(text + "total_train_epochs: 1\ngconfig: {use_beam_search: true}\n")
    assert str(error.value).partition(": ")[2] == (
        f"visual models and data sets: found {found}; allowed are text models and text data: images need models with a "
        "vision encoder, and batches with pixels"
    )


def test_a_file_takes_the_options_of_the_files_in_its_defaults_list(load: Load, tmp_path) -> None:
    (tmp_path / "base.yaml").write_text("seed: 5\ntotal_train_epochs: 3\nactor: {path: a, dtype: bfloat16}\n")
    text = "defaults: [base@_global_, _self_]\ntotal_train_epochs: 2\nactor: {path: b}\n"
    config = load(text).config
    assert (config.seed, config.trainer.max_epochs, config.actor.path, config.actor.dtype) == (5, 2, "b", "bfloat16")
    assert load(text.replace("[base@_global_, _self_]", "[_self_, base]")).config.actor.path == "a"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("[missing, _self_]", r"config\.yaml:1: defaults: .*missing\.yaml: cannot be read"),
        ("[base]", r"config\.yaml:1: defaults: found _self_ 0 times; allowed is _self_ once"),
        ("[db/mysql, _self_]", r"defaults: found 'db/mysql'; allowed are names of YAML files"),
        ("[{db: mysql}, _self_]", r"defaults: found an entry that is not a name; allowed are"),
        ("[config, _self_]", r"defaults: found a chain of 32 files"),
    ],
)
def test_other_defaults_lists_are_refused(load: Load, tmp_path, names: str, message: str) -> None:
    (tmp_path / "base.yaml").write_text("seed: 5\n")
    with pytest.raises(ConfigError, match=message):
        load(f"defaults: {names}\ntotal_train_epochs: 2\n")


def test_options_of_one_feature_share_an_error(load: Load) -> None:
    with pytest.raises(ConfigError) as error:
        load(
            "actor: {archon: {fp8_config: {mode: blockwise}}}\nref: {archon: {fp8_config: {mode: blockwise}}}\n"
            "total_train_epochs: 1\n"
        )
    text = str(error.value)
    assert "actor.archon.fp8_config: found" in text
    assert text.endswith("(the same holds for ref.archon.fp8_config)")


def test_training_options_of_a_frozen_model_have_no_effect(load: Load) -> None:
    assert decided(load("ref: {ppo_n_minibatches: 1, kl_ctl: 0.1}\ntotal_train_epochs: 1\n")) == {
        "ref.ppo_n_minibatches": ("1", "no effect")
    }


def test_a_misspelt_section_is_reported_as_a_whole(load: Load) -> None:
    with pytest.raises(
        ConfigError, match=r"config\.yaml:1: unknown option trian_dataset; did you mean 'train_dataset'"
    ):
        load("trian_dataset: {path: a, type: rl}\ntotal_train_epochs: 1\n")


def test_a_misspelt_option_of_areal_gets_its_name(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"unknown option actor\.use_lorra; did you mean 'use_lora'"):
        load("actor: {use_lorra: true}\ntotal_train_epochs: 1\n")
