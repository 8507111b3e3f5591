import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archon_core.config.raw import RawMapping
from archon_core.config.reference import root_sections
from archon_core.config.rules import number, one_of
from archon_core.config.sections import build_schema, choose_sections
from archon_core.config.validation import check_options
from archon_core.contracts.engine_config import OptimizerConfig
from archon_core.plugins import Registry, TrainEngineSpec
from archon_engine.options.archon import ArchonEngineConfig
from archon_train.experiment import ROOT


@pytest.fixture
def schema(make_registry: Callable[..., Registry]) -> Any:
    """The schema of an experiment with the options of the Archon engine."""
    registry = make_registry()
    root = ROOT.with_engines(registry.all(TrainEngineSpec))
    return build_schema(root.schema, choose_sections(registry, RawMapping({}), root).used)


def with_option(config: Any, option: str, value: Any) -> Any:
    *sections, name = option.split(".")
    owner: Any = config
    for section in sections:
        owner = getattr(owner, section)
    setattr(owner, name, value)
    return config


def test_the_defaults_are_allowed(schema: Any) -> None:
    config = schema(critic=ArchonEngineConfig(), ref=ArchonEngineConfig(optimizer=None))
    assert check_options(config) == []


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("actor.mb_spec.packing_algorithm", "fdd", "ffd, kk; did you mean 'ffd'?"),
        ("actor.mb_spec.n_mbs", 0, "numbers from 1"),
        ("actor.mb_spec.max_tokens_per_mb", -1, "numbers from 1"),
        ("actor.optimizer.type", "adamx", "adamw, adam, sgd, muon; did you mean"),
        ("actor.optimizer.lr", -1.0, "numbers from 0"),
        ("actor.optimizer.lr", float("inf"), "numbers from 0"),
        ("actor.optimizer.beta2", 1.0, "numbers from 0 below 1"),
        ("actor.optimizer.eps", 0.0, "numbers above 0"),
        ("actor.optimizer.gradient_clipping", -1.0, "numbers from 0; 0 switches it off"),
        ("actor.optimizer.lr_scheduler_type", "step", "constant, linear, cosine, wsd"),
        ("actor.optimizer.warmup_steps_proportion", 1.5, "numbers from 0 up to 1"),
        ("actor.archon.ac_mode", "selctive", "none, selective, full, memory_budget; did you mean 'selective'?"),
        ("actor.archon.pp_layers_per_stage", 0, "numbers from 1"),
        ("actor.archon.pp_first_stage_less_layers", -1, "numbers from 0; null balances stages by cost"),
        ("actor.archon.pp_last_stage_less_layers", -1, "numbers from 0; null balances stages by cost"),
        ("actor.archon.selective_ac_option", "0", "op, or a number N for every Nth layer"),
        ("actor.archon.selective_ac_option", "ops", "op, or a number N for every Nth layer"),
        ("actor.archon.ac_memory_budget", 1.1, "numbers from 0 up to 1"),
        ("actor.archon.ac_memory_budget", -0.1, "numbers from 0 up to 1"),
        ("actor.archon.reshard_after_forward_policy", "sometimes", "default, always, never"),
        ("actor.archon.attn_type", "tree", "varlen, flex, sdpa"),
        ("actor.archon.cp_style", "ulyses", "auto, ulysses, gather, hybrid; did you mean 'ulysses'?"),
        ("actor.archon.moe_router_dtype", "bf16", "fp32; null takes the compute type"),
        ("actor.dtype", "bf16", "float32, bfloat16, float64"),
        ("actor.temperature", 0.0, "numbers above 0"),
        ("cluster.n_nodes", 0, "numbers from 1"),
        ("tokenizer.kind", "words", "pretrained, characters, bpe"),
        ("data.batch_size", 0, "numbers from 1"),
        ("trainer.save_every", -1, "numbers from 0"),
        ("trainer.keep_last", 0, "numbers from 1; null keeps all checkpoints"),
        ("gconfig.top_p", 0.0, "numbers above 0 up to 1"),
        ("gconfig.top_k", -1, "numbers from 0; 0 keeps all tokens"),
        ("gconfig.temperature", 0.0, "for the most probable token, set greedy=true"),
        ("gconfig.stop_token_ids", [3, -1], "token ids of 0 or more"),
        ("experiment_name", "a/b", "names of folders, without slashes"),
        ("trial_name", "..", "names of folders, without slashes"),
        ("trial_name", " ", "names of folders, without slashes"),
        ("trial_name", "a\tb", "without slashes and control characters"),
    ],
)
def test_a_value_that_is_not_allowed_is_found_with_what_is(schema: Any, option: str, value: Any, allowed: str) -> None:
    ((found, text),) = check_options(with_option(schema(), option, value))
    assert found == option
    shown = repr(value) if isinstance(value, str) else str(value)
    assert text.startswith(f"{option}: found {shown}; allowed are ")
    assert allowed in text


@pytest.mark.parametrize("size", [-1, 0, 0.5])
def test_a_size_of_model_config_is_at_least_one(schema: Any, size: float) -> None:
    config = with_option(schema(), "actor.model_config", {"hidden_size": size, "head_dim": None, "vocab_size": 8})
    assert check_options(config) == [
        (
            "actor.model_config.hidden_size",
            f"actor.model_config.hidden_size: found {size}; allowed is 1 or more; correct it, or leave it out",
        )
    ]


@pytest.mark.parametrize("value", ["op", "1", "12"])
def test_every_nth_layer_is_a_number_from_one(schema: Any, value: str) -> None:
    assert check_options(with_option(schema(), "actor.archon.selective_ac_option", value)) == []


def test_a_number_too_long_for_int_is_refused(schema: Any) -> None:
    ((_, text),) = check_options(with_option(schema(), "actor.archon.selective_ac_option", "9" * 5000))
    assert "allowed are op, or a number N for every Nth layer" in text
    assert len(text) < 400


def test_every_nth_checkpoint_is_kept_beside_the_last_ones(schema: Any) -> None:
    ((option, text),) = check_options(with_option(schema(), "trainer.keep_every", 5))
    assert option == "trainer.keep_every"
    assert text.startswith("trainer.keep_every: found 5 without trainer.keep_last, which keeps all checkpoints; set")


def test_rules_hold_for_every_model_of_an_experiment(schema: Any) -> None:
    config = schema(critic=ArchonEngineConfig(dtype="half"), ref=ArchonEngineConfig(dtype="half"))
    assert [option for option, _ in check_options(config)] == ["critic.dtype", "ref.dtype"]


def test_options_that_need_one_another_are_checked_together(schema: Any) -> None:
    config = schema()
    config.actor.pad_to_maximum = True
    config.actor.gradient_checkpointing = True
    config.actor.archon = dataclasses.replace(config.actor.archon, ac_mode="memory_budget", enable_compile=False)
    config.actor.optimizer = OptimizerConfig(
        lr_scheduler_type="wsd", warmup_steps_proportion=0.6, decay_steps_proportion=0.6
    )
    config.gconfig.min_new_tokens = 600
    found = dict(check_options(config))
    assert set(found) == {
        "actor.pad_to_maximum",
        "actor.archon.ac_mode",
        "actor.optimizer.decay_steps_proportion",
        "gconfig.min_new_tokens",
    }
    assert "set mb_spec.max_tokens_per_mb, or pad_to_maximum=false" in found["actor.pad_to_maximum"]
    assert "archon.enable_compile=true" in found["actor.archon.ac_mode"]


def test_memory_budget_without_checkpointing_asks_for_nothing(schema: Any) -> None:
    config = schema()
    config.actor.archon = dataclasses.replace(config.actor.archon, ac_mode="memory_budget", enable_compile=False)
    assert check_options(config) == []


def test_every_number_of_the_schema_has_a_rule(schema: Any) -> None:
    unbounded = {"seed"}
    numbers = 0
    for entry in root_sections(schema):
        hints = typing.get_type_hints(entry.schema)
        for f in dataclasses.fields(entry.schema):
            members = set(typing.get_args(hints[f.name])) or {hints[f.name]}
            if members & {int, float} and f.name not in unbounded:
                numbers += 1
                assert "rule" in f.metadata, f"{entry.paths[0]}.{f.name}"
    assert numbers > 30


@given(st.floats(), st.floats(0, 1))
def test_a_range_admits_exactly_what_it_says(value: float, most: float) -> None:
    inside = 0 <= value <= most
    assert (number(least=0, most=most)(value) is None) == inside


@given(st.text(max_size=6))
def test_a_choice_admits_exactly_its_values(value: str) -> None:
    assert (one_of("ffd", "kk")(value) is None) == (value in ("ffd", "kk"))
