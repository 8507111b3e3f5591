from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archon_core.config.loading import LoadedConfig
from archon_core.config.raw import RawMapping, merge, nested, shown
from archon_core.config.sections import build_schema, choose_sections
from archon_core.config.typed import knows, untyped
from archon_core.config.yaml_file import parse_yaml
from archon_core.errors import ConfigError
from archon_train.areal.ignored import judge
from archon_train.areal.keys import (
    DEFAULTS,
    NULL_MEANS,
    PIPELINE_DEFAULTS,
    RENAMED,
    SECTIONS,
)
from archon_train.areal.meaning import translate
from archon_train.areal.names import new_name, rename
from archon_train.areal.rules import IGNORED
from archon_train.experiment import ROOT, ExperimentConfig

Load = Callable[..., LoadedConfig]


def decided(loaded: LoadedConfig) -> dict[str, tuple[str, str]]:
    """The decisions except those about defaults."""
    made = (d for d in loaded.decisions if "left out (" not in d.requested and "'s default; " not in d.reason)
    return {d.option: (d.requested, d.effective) for d in made}


PLUGINS_OWN = {
    "actor.behave_imp_weight_cap",
    "actor.behave_imp_weight_mode",
    "data.hf.split",
    "data.hf.validation_split",
}
"""Options of packages that these tests do not need, or that an installed release may not have yet."""


def renamed(text: str, keep: frozenset[str] = frozenset()) -> object:
    return untyped(rename(parse_yaml(text, "f"), keep))


def test_names_are_replaced_in_keys_and_in_references() -> None:
    assert renamed("train_dataset: {batch_size: 8}\nx: a/${train_dataset.batch_size}\n") == {
        "train_dataset": {},
        "x": "a/${data.batch_size}",
        "data": {"batch_size": 8},
    }


def test_relative_references_become_absolute_before_anything_moves() -> None:
    tree = rename(parse_yaml("train_dataset: {path: p, x: '${.path}', y: '${..seed}'}\nseed: 1\n", "f"))
    assert shown(tree.get("train_dataset.x")) == "${data.path}"  # type: ignore[arg-type]
    assert shown(tree.get("train_dataset.y")) == "${seed}"  # type: ignore[arg-type]


def test_a_renamed_section_takes_everything_along() -> None:
    assert renamed("model: {path: m, fsdp: {offload_params: true}}\nx: ${model.path}\n") == {
        "x": "${actor.path}",
        "actor": {"path": "m", "fsdp": {}, "archon": {"offload_params": True}},
    }


def test_a_plugins_own_section_is_left_alone() -> None:
    own = renamed("model: {a: 1}\nx: ${model.a}\n", frozenset({"model"}))
    assert own == {"model": {"a": 1}, "x": "${model.a}"}


def test_an_option_with_two_values_under_its_two_names_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"f:1: found train_dataset\.path=a \(AReaL's name for .*\) and data\.path=b \(f:2\)"
    ):
        renamed("train_dataset: {path: a}\ndata: {path: b}\n")
    with pytest.raises(
        ConfigError, match=r"found teacher\.train\.path=m \(AReaL's .*\) and teacher\.path=\$\{actor\.path\}"
    ):
        renamed("teacher: {path: '${actor.path}', train: {path: m}}\nactor: {path: other}\n")


def test_an_error_about_a_renamed_option_shows_both_names(load: Load) -> None:
    with pytest.raises(ConfigError) as raised:
        load("total_train_epochs: null\nteacher: {train: {path: a, dtype: 3}}\n", ["evaluator.freq_steps=x"])
    text = str(raised.value)
    assert "config.yaml:1 (total_train_epochs): trainer.max_epochs: found null" in text
    assert "override 'evaluator.freq_steps=x': trainer.eval_every: found 'x'" in text
    with pytest.raises(ConfigError, match=r"config\.yaml:1 \(train_dataset\.batch_size\): data\.batch_size: found 0"):
        load("train_dataset: {batch_size: 0, shuffle: true}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml:1: unknown option data\.shufle; did you mean 'shuffle'"):
        load("data: {shufle: true}\ntrain_dataset: {batch_size: 1}\n")


@pytest.mark.parametrize(
    ("teacher", "path"),
    [
        ("{path: m, train: {path: '${teacher.path}'}}", "m"),
        ("{path: '${teacher.train.path}', train: {path: m}}", "m"),
        ("{path: '${.train.path}', train: {path: m}}", "m"),
        ("{path: '${actor.path}', train: {path: '${actor.path}'}}", "${actor.path}"),
        ("{path: '${actor.path}', train: {path: m}}", "${actor.path}"),
        ("{path: '${actor.attn_impl}', train: {path: 'm'}}", "m"),
        ("{path: m, train: {path: 'm'}}", "m"),
    ],
)
def test_an_option_may_have_both_names_if_its_values_agree(teacher: str, path: str) -> None:
    found = renamed(f"teacher: {teacher}\nactor: {{path: m, attn_impl: '${{teacher.train.path}}'}}\n")
    assert found["teacher"] == {"path": path}  # type: ignore[index]


@given(st.sampled_from(sorted(RENAMED)), st.sampled_from(["actor", "ref", "critic"]))
def test_renaming_ends_and_ends_in_names_that_are_not_renamed(old: str, role: str) -> None:
    new = new_name(old.replace("*", role))
    assert new is not None
    assert new_name(new) is None


def test_the_tables_agree_with_the_schema(make_registry) -> None:
    schema = build_schema(ExperimentConfig, choose_sections(make_registry(), RawMapping({}), ROOT).used)
    for new in RENAMED.values():
        assert new in PLUGINS_OWN or knows(schema, new.replace("*", "actor")), new
    for option in (pattern.replace("*", "actor") for pattern in (*DEFAULTS, *PIPELINE_DEFAULTS, *NULL_MEANS)):
        assert knows(schema, option), option
    for rule in IGNORED:
        assert rule.reason
        assert rule.harmless or rule.otherwise != "error", f"{rule.path}: an error needs an allowed value"
    assert not any(knows(schema, name) for name in SECTIONS)


def test_an_override_under_one_name_wins_over_the_file_under_the_other(load: Load) -> None:
    text = "train_dataset: {path: a.jsonl}\n"
    assert load(text, ["data.path=b.jsonl"]).config.data.path == "b.jsonl"
    assert load("data: {path: a.jsonl}\n", ["train_dataset.path=b.jsonl"]).config.data.path == "b.jsonl"


def test_length_data_and_frequencies_are_translated(load: Load) -> None:
    loaded = load(
        """
        total_train_epochs: 3
        total_train_steps: null
        train_dataset: {path: a.jsonl, batch_size: 4, shuffle: false, max_length: 9, type: sft}
        valid_dataset: {path: b.jsonl, type: sft}
        saver: {freq_steps: 5}
        evaluator: {freq_steps: null}
        """
    )
    config = loaded.config
    assert (config.trainer.max_epochs, config.trainer.max_steps) == (3, None)
    assert (config.trainer.save_every, config.trainer.eval_every) == (5, 0)
    assert (config.data.path, config.data.validation_path, config.data.dataset) == ("a.jsonl", "b.jsonl", "jsonl")
    assert (config.data.batch_size, config.data.shuffle, config.data.max_length) == (4, False, 9)
    assert decided(loaded) == {"algorithm": ("left out", "sft"), "data.dataset": ("left out", "jsonl")}


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        ("train_dataset: {type: rl}\n", "grpo"),
        ("train_dataset: {type: rl}\ncritic: {path: c}\n", "ppo"),
        ("total_train_epochs: 1\ncritic: {path: c}\n", "ppo"),
        ("total_train_epochs: 1\ncritic: {path: c}\nalgorithm: grpo\n", "grpo"),
        ("train_dataset: {type: rw}\n", "rw"),
        ("train_dataset: {type: sft}\nalgorithm: grpo\n", "grpo"),
        ("total_train_epochs: 1\n", "grpo"),
    ],
)
def test_the_kind_of_data_set_chooses_the_algorithm_unless_it_is_named(load: Load, text: str, algorithm: str) -> None:
    assert load(text).config.algorithm == algorithm


def test_a_named_algorithm_leaves_the_kind_of_data_set_without_effect(load: Load) -> None:
    assert decided(load("train_dataset: {type: sft}\nalgorithm: grpo\n")) == {
        "train_dataset.type": ("sft", "no effect")
    }


def test_adam_is_adamw_in_areals_files_and_adam_in_ours(load: Load) -> None:
    loaded = load("total_train_epochs: 1\nactor: {optimizer: {type: adam}}\n")
    assert loaded.config.actor.optimizer.type == "adamw"
    assert decided(loaded) == {"actor.optimizer.type": ("adam", "adamw")}
    ours = load("actor: {optimizer: {type: adam}}\n", ["total_train_epochs=1"])
    assert ours.config.actor.optimizer.type == "adam"
    assert not ours.decisions


def test_dynamic_sampling_fills_the_batch_unless_its_size_is_dynamic() -> None:
    def decisions(text: str) -> list[tuple[str, str]]:
        return [(d.option, d.effective) for d in translate(parse_yaml(text, "f")).decisions]

    filled = [("actor.dynamic_sampling", "true, and further prompts fill the batch")]
    assert decisions("actor: {dynamic_sampling: true}") == filled
    assert decisions("{actor: {dynamic_sampling: true}, dynamic_bs: true}") == []
    assert decisions("actor: {dynamic_sampling: false}") == []


def test_scheduler_null_is_local(load: Load) -> None:
    loaded = load("total_train_epochs: 1\nscheduler: {type: null}\n")
    assert loaded.config.scheduler.type == "local"
    assert decided(loaded) == {"scheduler.type": ("null", "local")}


def test_allocation_mode_is_ignored_with_its_equivalent(load: Load) -> None:
    (decision,) = [
        d for d in load("allocation_mode: sglang:d4p1t1+d4p1t1\n").decisions if d.option == "allocation_mode"
    ]
    assert decision.effective == "ignored"
    assert "rollout.backend=sglang:d4" in decision.reason
    assert "actor.backend=archon:d4" in decision.reason


def test_allocation_mode_as_an_override_is_ignored_whatever_the_form_of_the_file(load: Load) -> None:
    loaded = load("experiment_name: e\n", ("allocation_mode=sglang:d4+fsdp:d2",))
    (decision,) = loaded.decisions
    assert (decision.option, decision.effective) == ("allocation_mode", "ignored")
    assert "actor.backend=fsdp:d2" in decision.reason


def test_a_data_set_that_areal_knows_gets_what_its_code_fills_in(load: Load) -> None:
    loaded = load("train_dataset: {path: openai/gsm8k}\nvalid_dataset: {path: '${train_dataset.path}'}\n")
    assert (loaded.config.data.dataset, loaded.config.data.validation_path) == ("hf", None)
    assert loaded.config.reward == "gsm8k"
    assert load("train_dataset: {path: openai/gsm8k}\nreward: null\n").config.reward is None
    assert load("train_dataset: {path: openai/gsm8k, type: sft}\n").config.reward is None


def verdict(option: str, value: str) -> str:
    node = parse_yaml(f"x: {value}", "f").entries["x"]
    found = judge(option, node, merge(parse_yaml("experiment_name: e", "f"), nested(option, node)))
    if not found.known:
        return "unknown"
    return "error" if found.problem else "decision" if found.decision else "harmless"


@pytest.mark.parametrize(
    ("option", "value", "outcome"),
    [
        ("rollout.lora_name", "a", "decision"),
        ("gconfig.use_beam_search", "false", "harmless"),
        ("gconfig.use_beam_search", "true", "error"),
        ("eval_gconfig.use_beam_search", "true", "error"),
        ("eval_gconfig.seed", "7", "decision"),
        ("saver.freq_epochs", "1", "decision"),
        ("saver.freq_epochs", "null", "harmless"),
        ("perf_tracer", "null", "harmless"),
        ("perf_tracer.enabled", "true", "harmless"),  # archon_train.areal.profiling
        ("perf_tracer.nonsense", "1", "unknown"),
        ("valid_dataset", "null", "harmless"),
        ("valid_dataset", "text", "error"),
        ("rollout.experiment_name", "${experiment_name}", "harmless"),
        ("rollout.experiment_name", "other", "decision"),
        ("valid_dataset.pin_memory", "true", "decision"),
        ("nonsense.experiment_name", "x", "unknown"),
        ("actor.nonsense", "x", "unknown"),
        ("cluster.name_resolve.type", "nfs", "harmless"),
        ("rollout.agent.mode", "inline", "harmless"),
        ("rollout.agent.mode", "online", "decision"),
        ("rollout.agent.turn_discount", "1", "harmless"),
        ("rollout.agent.turn_discount", "0.5", "decision"),
        ("rollout.agent.turn_discountt", "0.5", "unknown"),
        ("actor.megatron.ddp.overlap_grad_reduce", "true", "decision"),
        ("actor.megatron.ddp.fp8_param_gather", "true", "error"),
        ("actor.megatron.ddp.nonsense", "1", "unknown"),
        ("actor.optimizer.warmup_steps", "10", "error"),
        ("max_turns", "3", "decision"),
        ("my_scripts_own", "{a: 1}", "decision"),
        ("trial_nam", "x", "unknown"),
    ],
)
def test_an_option_without_effect_is_a_decision_unless_its_value_is_harmless(
    option: str, value: str, outcome: str
) -> None:
    assert verdict(option, value) == outcome


def test_a_copy_of_another_option_is_harmless_when_both_say_the_same(load: Load) -> None:
    text = """
    experiment_name: e
    saver: {experiment_name: e, fileroot: "${cluster.fileroot}"}
    evaluator: {experiment_name: "${actor.experiment_name}"}
    actor: {experiment_name: "${experiment_name}", max_new_tokens: 4}
    cluster: {fileroot: /x}
    """
    assert decided(load(text)) == {"actor.max_new_tokens": ("4", "no effect")}


def test_a_value_that_would_change_results_is_an_error_with_its_line(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml:1: actor\.optimizer\.offload: found true; allowed is false: "):
        load("actor: {optimizer: {offload: true}}\n")


def test_options_with_the_same_reason_share_a_row(load: Load) -> None:
    loaded = load("gconfig: {lora_name: a}\nrollout: {lora_name: b}\n")
    assert decided(loaded) == {"gconfig.lora_name, rollout.lora_name": ("a, b", "no effect")}


def test_an_unknown_option_inside_areals_sections_is_still_unknown(load: Load) -> None:
    with pytest.raises(ConfigError) as error:
        load(
            "saver: {freq_stepz: 3, freq_secs: 5}\n"
            "actor: {megatrn: {a: 1}, fsdp: {wrap_polcy: 1}}\n"
            "savr: {mode: auto}\n"
        )
    text = str(error.value)
    assert "unknown option saver.freq_stepz; did you mean 'freq_steps'?" in text
    assert "unknown option actor.megatrn; " in text
    assert "unknown option actor.fsdp.wrap_polcy; did you mean 'wrap_policy'?" in text
    assert "unknown option savr; " in text
    assert text.startswith("4 problems")


FULL = Path(__file__).parent / "areal_gsm8k_grpo.yaml"


def test_a_whole_areal_file_loads_and_every_change_is_a_decision(load: Load) -> None:
    loaded = load(FULL.read_text(), allow_missing=True)
    config = loaded.config
    assert config.trainer.max_epochs == 10
    assert config.actor.optimizer.lr == pytest.approx(1.7e-5)
    assert config.ref.path == config.actor.path == config.tokenizer_path == "Qwen/Qwen2.5-1.5B-Instruct"
    assert config.ref.optimizer is None
    assert config.data.batch_size == 256
    options = {option for decision in loaded.decisions for option in decision.option.split(", ")}
    assert options == {
        "actor.archon.enable_compile",
        "actor.optimizer.type",
        "actor.scheduling_spec",
        "algorithm",
        "allocation_mode",
        "cluster.name_resolve.type",
        "data.dataset",
        "data.validation_path",
        "evaluator.freq_epochs",
        "gconfig.max_tokens",
        "recover.freq_epochs",
        "recover.freq_secs",
        "ref.archon.enable_compile",
        "ref.disable_dropout",
        "reward",
        "saver.freq_epochs",
        "scheduler.type",
        "sglang",
        "train_dataset.num_workers",
        "train_dataset.pin_memory",
        "trainer.eval_before_train",
        "valid_dataset.batch_size",
        "valid_dataset.num_workers",
        "valid_dataset.pin_memory",
        "vllm",
    }
