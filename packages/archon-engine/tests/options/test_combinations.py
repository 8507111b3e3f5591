"""Each rule of options that do not go together: that it applies, that it is recorded, and that strict refuses it."""

import dataclasses

import pytest

from archon_core.errors import ConfigError
from archon_core.layout import ParallelDims
from archon_core.plugins import ScheduleSpec
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_engine.options.combinations import (
    RULES,
    asked_value,
    changes,
    refusals,
    render_rules,
    shown,
)
from archon_engine.options.context import OptionContext
from archon_engine.options.effective import resolve_effective


def engine(**options):
    own = {name: options.pop(name) for name in list(options) if name in ArchonEngineConfig.__dataclass_fields__}
    return ArchonEngineConfig(**own, archon=ArchonOptions(**{"enable_compile": False, **options}))


DECISIONS = {
    ("archon.enable_compile", True): (engine(enable_compile=True), "false"),
    ("archon.ac_mode", "selective, full or memory_budget, if you wrote it"): (engine(ac_mode="full"), "none"),
    ("archon.selective_ac_option", "N"): (
        engine(gradient_checkpointing=True, ac_mode="full", selective_ac_option="2"),
        "op",
    ),
    ("archon.ac_memory_budget", "any value but 0.5"): (
        engine(gradient_checkpointing=True, ac_mode="full", ac_memory_budget=0.3),
        "0.5",
    ),
    ("archon.pp_layers_per_stage", "a number"): (engine(pp_layers_per_stage=3), "default"),
    ("archon.pp_first_stage_less_layers", "a number"): (engine(pp_first_stage_less_layers=0), "default"),
    ("archon.pp_last_stage_less_layers", "a number"): (engine(pp_last_stage_less_layers=1), "default"),
    ("archon.pp_record_step", "a number"): (engine(pp_record_step=2), "default"),
    ("archon.cp_style", "any value but auto"): (engine(cp_style="gather"), "auto"),
    ("gradient_checkpointing", True): (engine(gradient_checkpointing=True, optimizer=None), "false"),
    ("archon.offload_params", True): (engine(offload_params=True), "false"),
}
"""(option, asked) of a rule -> a configuration to which it applies on a CPU, and what is used."""

ERRORS = {
    ("archon.ac_mode", "enable_compile=false"): engine(gradient_checkpointing=True, ac_mode="memory_budget"),
    ("archon.ac_mode", "a CPU, if enable_compile is a default"): engine(
        gradient_checkpointing=True, ac_mode="memory_budget", enable_compile=True
    ),
    ("pad_to_maximum", "mb_spec.max_tokens_per_mb=null"): engine(pad_to_maximum=True),
}
"""(option, beside) of a rule -> a configuration to which it applies on a CPU."""

SPLIT = ScheduleSpec(name="ZBV", target="", splits_backward=True)
SPLIT_OPTIONS = {
    ("archon.enable_compile", True): (engine(enable_compile=True), "false"),
    ("archon.ac_mode", "selective by operation"): (engine(gradient_checkpointing=True), "full"),
    ("archon.ac_mode", "memory_budget"): (engine(gradient_checkpointing=True, ac_mode="memory_budget"), "full"),
}
"""(option, asked) of a rule about a schedule that splits the backward pass -> the same; an error when it is written."""

WRITTEN = frozenset({"actor.archon.ac_mode"})


def resolve(config, *, device="cpu", explicit=WRITTEN, dims=None, schedule=None):
    return resolve_effective(config, role="actor", device=device, explicit=explicit, dims=dims, schedule=schedule)


def resolve_split(config, *, device="cpu", written=()):
    explicit = frozenset(f"actor.{option}" for option in written)
    return resolve(config, device=device, explicit=explicit, dims=ParallelDims(pp=2), schedule=SPLIT)


def test_every_rule_has_a_case_here():
    of_schedules = [rule for rule in RULES if "splits the backward pass" in rule.conflict]
    others = [rule for rule in RULES if rule not in of_schedules]
    assert {(rule.option, rule.asked) for rule in others if rule.effect == "decision"} == set(DECISIONS)
    assert {(rule.option, rule.conflict) for rule in others if rule.effect == "error"} == set(ERRORS)
    for effect in ("decision", "error"):
        assert {(rule.option, rule.asked) for rule in of_schedules if rule.effect == effect} == set(SPLIT_OPTIONS)
    for rule in RULES:
        asked_value(ArchonEngineConfig(), rule.option)
        assert rule.reason
        assert rule.fix or rule.effect == "decision"


@pytest.mark.parametrize(("option", "asked"), DECISIONS, ids=lambda value: str(value).split(",")[0])
def test_a_decision_is_recorded_with_what_was_asked_and_what_is_used(option, asked):
    config, used = DECISIONS[option, asked]
    _, decisions = resolve(config)
    [decision] = [d for d in decisions if d.option == f"actor.{option}"]
    assert (decision.requested, decision.effective) == (shown(asked_value(config, option)), used)
    assert decision.reason


@pytest.mark.parametrize(("option", "asked"), DECISIONS, ids=lambda value: str(value).split(",")[0])
def test_strict_makes_a_decision_an_error_that_names_the_option(option, asked):
    config, used = DECISIONS[option, asked]
    strict = dataclasses.replace(config, archon=dataclasses.replace(config.archon, strict=True))
    with pytest.raises(
        ConfigError, match=rf"(?s)actor\.archon\.strict: found true.*actor\.{option}: found .*would use {used}"
    ):
        resolve(strict)


def test_strict_refuses_nothing_that_was_not_asked_but_what_the_device_cannot_do():
    effective, _ = resolve(engine(strict=True), dims=ParallelDims(tp=4), explicit=frozenset())
    assert (effective.compute_dtype, effective.pad_multiple) == ("float32", 4)
    # What a default device cannot do was asked by nobody in particular, but it is asked.
    with pytest.raises(ConfigError, match=r"(?s)strict: found true.*enable_compile: found true, would use false"):
        resolve(engine(strict=True, enable_compile=True), explicit=frozenset())


@pytest.mark.parametrize(("option", "beside"), ERRORS, ids=lambda value: str(value).split(",")[0])
def test_an_error_says_what_was_found_and_what_to_write(option, beside):
    [rule] = [rule for rule in RULES if (rule.option, rule.conflict) == (option, beside)]
    with pytest.raises(ConfigError) as refused:
        resolve(ERRORS[option, beside])
    assert f"actor.{option}: found {shown(rule.asked)} with {beside}; {rule.reason}; {rule.fix}" in str(refused.value)


@pytest.mark.parametrize(("option", "asked"), SPLIT_OPTIONS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_a_split_backward_cannot_have_is_a_decision_by_default_and_an_error_when_written(option, asked, device):
    config, used = SPLIT_OPTIONS[option, asked]
    _, decisions = resolve_split(config, device=device)
    [decision] = [d for d in decisions if d.option == f"actor.{option}"]
    assert (decision.requested, decision.effective) == (shown(asked_value(config, option)), used)
    assert "goes through each stage's graph twice" in decision.reason or asked == "memory_budget"
    with pytest.raises(ConfigError) as refused:
        resolve_split(config, device=device, written=[option])
    assert f"actor.{option}: found {shown(asked)} with a schedule that splits the backward pass; " in str(refused.value)
    strict = dataclasses.replace(config, archon=dataclasses.replace(config.archon, strict=True))
    with pytest.raises(
        ConfigError, match=rf"(?s)actor\.archon\.strict: found true.*actor\.{option}: found .*would use {used}"
    ):
        resolve_split(strict, device=device)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("recomputes", [False, True])
def test_a_schedule_that_splits_the_backward_runs_with_default_settings(device, recomputes):
    effective, decisions = resolve_split(ArchonEngineConfig(gradient_checkpointing=recomputes), device=device)
    assert (effective.compile, effective.ac_mode, effective.ac_every) == (False, "full" if recomputes else "none", None)
    by_option = [decision.option for decision in decisions]
    expected = ["actor.dtype", "actor.archon.enable_compile", *["actor.archon.ac_mode"] * recomputes]
    assert by_option == expected


@pytest.mark.parametrize(("option", "value"), [("ac_memory_budget", 0.3), ("selective_ac_option", "2")])
@pytest.mark.parametrize("mode", [{"ac_mode": "none", "gradient_checkpointing": True}, {"ac_mode": "full"}])
def test_options_of_activation_checkpointing_are_unused_without_it(mode, option, value):
    _, decisions = changes(
        OptionContext(engine(**{"gradient_checkpointing": False, **mode, option: value})), role="actor"
    )
    assert f"actor.archon.{option}" in [decision.option for decision in decisions]


def test_what_a_split_backward_can_have_stays():
    every_second = engine(gradient_checkpointing=True, ac_mode="selective", selective_ac_option="2")
    options = ["archon.ac_mode", "archon.selective_ac_option", "archon.enable_compile"]
    effective, decisions = resolve_split(every_second, written=options)
    assert (effective.ac_mode, effective.ac_every) == ("selective", 2)
    effective, more = resolve_split(engine(gradient_checkpointing=True, ac_mode="full"), written=options)
    assert effective.ac_mode == "full"
    assert {d.option for d in (*decisions, *more)} == {"actor.dtype"}


def test_selective_by_operation_counts_as_written_when_either_of_its_options_is():
    with pytest.raises(ConfigError, match=r"actor\.archon\.ac_mode: found selective by operation"):
        resolve_split(engine(gradient_checkpointing=True), written=["archon.selective_ac_option"])


def test_a_model_that_is_not_trained_has_no_backward_to_split():
    config = ArchonEngineConfig(optimizer=None)
    effective, _ = resolve_split(config, device="cuda", written=["archon.enable_compile"])
    assert effective.compile


def test_gradients_are_reduced_each_time_when_asked():
    assert resolve_split(engine(pp_reduce_grad_per_microbatch=True))[0].reduce_each_micro_batch
    assert not resolve_split(engine())[0].reduce_each_micro_batch


def test_options_of_stages_are_used_in_a_pipeline():
    config = engine(pp_layers_per_stage=3, pp_first_stage_less_layers=0, pp_last_stage_less_layers=1)
    _, decisions = resolve(config, dims=ParallelDims(pp=2), explicit=frozenset())
    assert {decision.option for decision in decisions} == {"actor.dtype"}
    assert changes(OptionContext(config), role="actor") == ({}, []), "before the layout is known"


def test_all_refusals_come_in_one_message():
    config = engine(pad_to_maximum=True, gradient_checkpointing=True, ac_mode="memory_budget")
    with pytest.raises(ConfigError, match=r"(?s)actor\.archon\.ac_mode.*actor\.pad_to_maximum"):
        resolve(config)


def test_what_a_cuda_device_can_do_is_not_changed_there():
    config = engine(gradient_checkpointing=True, ac_mode="memory_budget", enable_compile=True, offload_params=True)
    effective, decisions = resolve(config, device="cuda")
    assert (effective.ac_mode, effective.compile, effective.offload_params) == ("memory_budget", True, True)
    assert {decision.option for decision in decisions} == {"actor.dtype"}


def test_before_the_device_is_known_only_what_no_device_can_do_is_refused():
    on_any, on_cpu = (ERRORS["archon.ac_mode", beside] for _, beside in list(ERRORS)[:2])
    assert [option for option, _ in refusals(OptionContext(on_any))] == ["archon.ac_mode"]
    assert list(refusals(OptionContext(on_cpu))) == []
    assert changes(OptionContext(engine(enable_compile=True)), role="actor") == ({}, [])


def test_the_table_in_the_documentation_has_a_row_per_rule():
    table = render_rules()
    assert table.count("\n") == len(RULES) + 2
    assert "| `archon.ac_mode` | memory_budget | enable_compile=false | error: set archon.enable_compile=true" in table
