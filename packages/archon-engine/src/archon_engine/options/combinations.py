"""Options that depend on one another, on the device, or on whether the user wrote them: one table of rules.

``options.effective`` applies all rules, and validation the rules that need no device. docs/engine-options.md is
generated from the table, so they cannot disagree. Imports no torch, because dry runs use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from archon_core.config.rules import written_value
from archon_core.contracts.decisions import Decision
from archon_engine.options.context import OptionContext
from archon_engine.options.context_style import AUTO

if TYPE_CHECKING:
    from archon_core.contracts.engine_config import EngineConfig
    from archon_engine.options.archon import ArchonEngineConfig


@dataclass(frozen=True)
class Rule:
    """A conflict between the value of an option and another setting, and what happens then.

    Attributes:
        option: the option that is refused or changed.
        asked: its value in the configuration.
        conflict: the setting that it conflicts with.
        effect: ``error`` refuses the value; ``decision`` uses ``becomes`` instead and records that.
        reason: why, as a sentence without a full stop.
        applies: whether the conflict exists in a context.
        becomes: the value used instead.
        fix: for an error, what the user can write.
    """

    option: str
    asked: Any
    conflict: str
    effect: Literal["error", "decision"]
    reason: str
    applies: Callable[[OptionContext], bool]
    becomes: Any = None
    fix: str = ""


_SPLIT = "a schedule that splits the backward pass"
_SPLIT_BY_DEFAULT = f"{_SPLIT}, if the value is a default"
_TWICE = "such a schedule goes through each stage's graph twice, for input gradients and then for weight gradients"
_OTHER_SCHEDULE = "a schedule that does not split it, such as Interleaved1F1B"
_NO_STAGES = "a layout without p"
_NOT_CUT = "the model is not split into stages"

RULES: tuple[Rule, ...] = (
    Rule(
        "archon.enable_compile",
        True,
        "a CPU, if the value is a default",
        "decision",
        "on a CPU, compiling takes longer than most runs; write the option to compile anyway",
        lambda s: s.is_default_compile_on_cpu and not s.splits_backward,
        becomes=False,
    ),
    Rule(
        "archon.enable_compile",
        True,
        _SPLIT_BY_DEFAULT,
        "decision",
        f"{_TWICE}, and compiled graphs free their buffers in the first pass",
        lambda s: s.splits_backward and s.engine.archon.enable_compile and not s.has_written("enable_compile"),
        becomes=False,
    ),
    Rule(
        "archon.enable_compile",
        True,
        _SPLIT,
        "error",
        f"{_TWICE}, and compiled graphs free their buffers in the first pass",
        lambda s: s.splits_backward and s.engine.archon.enable_compile and s.has_written("enable_compile"),
        fix=f"set archon.enable_compile=false, or choose {_OTHER_SCHEDULE}",
    ),
    Rule(
        "archon.ac_mode",
        "selective by operation",
        _SPLIT_BY_DEFAULT,
        "decision",
        f"{_TWICE}; results selected by operation are kept for one pass only",
        lambda s: (
            s.splits_backward and s.recomputes_by_operation and not s.has_written("ac_mode", "selective_ac_option")
        ),
        becomes="full",
    ),
    Rule(
        "archon.ac_mode",
        "selective by operation",
        _SPLIT,
        "error",
        f"{_TWICE}; results selected by operation are kept for one pass only",
        lambda s: s.splits_backward and s.recomputes_by_operation and s.has_written("ac_mode", "selective_ac_option"),
        fix=f"set archon.ac_mode=full, or archon.selective_ac_option to a number, or choose {_OTHER_SCHEDULE}",
    ),
    Rule(
        "archon.ac_mode",
        "memory_budget",
        _SPLIT_BY_DEFAULT,
        "decision",
        "the compiler implements the budget, and such a schedule excludes compiling",
        lambda s: s.splits_backward and s.ac_mode == "memory_budget" and not s.has_written("ac_mode"),
        becomes="full",
    ),
    Rule(
        "archon.ac_mode",
        "memory_budget",
        _SPLIT,
        "error",
        "the compiler implements the budget, and such a schedule excludes compiling",
        lambda s: s.splits_backward and s.ac_mode == "memory_budget" and s.has_written("ac_mode"),
        fix=f"set archon.ac_mode=full, or choose {_OTHER_SCHEDULE}",
    ),
    Rule(
        "archon.ac_mode",
        "memory_budget",
        "enable_compile=false",
        "error",
        "the compiler implements the budget",
        lambda s: s.ac_mode == "memory_budget" and not s.engine.archon.enable_compile and not s.splits_backward,
        fix="set archon.enable_compile=true, or ac_mode to none, selective or full",
    ),
    Rule(
        "archon.ac_mode",
        "memory_budget",
        "a CPU, if enable_compile is a default",
        "error",
        "the compiler implements the budget, and compiling is off by default on a CPU",
        lambda s: s.ac_mode == "memory_budget" and s.is_default_compile_on_cpu and not s.splits_backward,
        fix="write archon.enable_compile=true, or set ac_mode to none, selective or full",
    ),
    Rule(
        "archon.ac_mode",
        "selective, full or memory_budget, if you wrote it",
        "gradient_checkpointing=false",
        "decision",
        "ac_mode takes effect only if gradient_checkpointing is true",
        lambda s: (
            not s.engine.gradient_checkpointing and s.engine.archon.ac_mode != "none" and s.has_written("ac_mode")
        ),
        becomes="none",
    ),
    Rule(
        "archon.selective_ac_option",
        "N",
        "another ac_mode than selective",
        "decision",
        "the option applies to ac_mode selective only",
        lambda s: s.has_other_ac_mode_than("selective") and s.engine.archon.selective_ac_option != "op",
        becomes="op",
    ),
    Rule(
        "archon.ac_memory_budget",
        "any value but 0.5",
        "another ac_mode than memory_budget",
        "decision",
        "the option applies to ac_mode memory_budget only",
        lambda s: s.has_other_ac_mode_than("memory_budget") and s.engine.archon.ac_memory_budget != 0.5,
        becomes=0.5,
    ),
    Rule(
        "gradient_checkpointing",
        True,
        "optimizer=null",
        "decision",
        "a model that is not trained keeps no activations",
        lambda s: s.engine.gradient_checkpointing and s.engine.optimizer is None,
        becomes=False,
    ),
    Rule(
        "archon.offload_params",
        True,
        "a CPU",
        "decision",
        "parameters are in host memory already",
        lambda s: s.engine.archon.offload_params and s.device == "cpu",
        becomes=False,
    ),
    Rule(
        "pad_to_maximum",
        True,
        "mb_spec.max_tokens_per_mb=null",
        "error",
        "there is no maximum to pad to",
        lambda s: s.engine.pad_to_maximum and s.engine.mb_spec.max_tokens_per_mb is None,
        fix="set mb_spec.max_tokens_per_mb, or pad_to_maximum=false",
    ),
    Rule(
        "archon.pp_layers_per_stage",
        "a number",
        _NO_STAGES,
        "decision",
        _NOT_CUT,
        lambda s: s.has_no_pipeline and s.engine.archon.pp_layers_per_stage is not None,
    ),
    Rule(
        "archon.pp_first_stage_less_layers",
        "a number",
        _NO_STAGES,
        "decision",
        _NOT_CUT,
        lambda s: s.has_no_pipeline and s.engine.archon.pp_first_stage_less_layers is not None,
    ),
    Rule(
        "archon.pp_last_stage_less_layers",
        "a number",
        _NO_STAGES,
        "decision",
        _NOT_CUT,
        lambda s: s.has_no_pipeline and s.engine.archon.pp_last_stage_less_layers is not None,
    ),
    Rule(
        "archon.pp_record_step",
        "a number",
        _NO_STAGES,
        "decision",
        "there are no pipeline actions to time",
        lambda s: s.has_no_pipeline and s.engine.archon.pp_record_step is not None,
    ),
    Rule(
        "archon.cp_style",
        "any value but auto",
        "a layout without c",
        "decision",
        "there are no context ranks",
        lambda s: s.context_ranks == 1 and s.engine.archon.cp_style != AUTO,
        becomes=AUTO,
    ),
)


def refusals(context: OptionContext) -> Iterator[tuple[str, str]]:
    """Yield the errors that apply: the option, and a found / allowed / fix sentence without the option's name."""
    for rule in RULES:
        if rule.effect == "error" and rule.applies(context):
            yield rule.option, f"found {shown(rule.asked)} with {rule.conflict}; {rule.reason}; {rule.fix}"


def changes(context: OptionContext, *, role: str) -> tuple[dict[str, Any], list[Decision]]:
    """The values that replace those of the configuration: option -> value, and a decision for each, prefixed with
    ``role``."""
    values: dict[str, Any] = {}
    decisions = []
    for rule in RULES:
        if rule.effect == "decision" and rule.applies(context):
            values[rule.option] = rule.becomes
            asked = asked_value(context.engine, rule.option)
            decisions.append(Decision(f"{role}.{rule.option}", shown(asked), shown(rule.becomes), rule.reason))
    return values, decisions


def refuse_when_strict(config: EngineConfig, decisions: Iterable[Decision], *, role: str) -> str | None:
    """The text of an error if ``strict`` of the section ``role`` is set and a decision changes the configuration.

    ``None`` otherwise, and for engines without the option. Decisions about defaults, and about options that leave the
    choice to the engine (``auto``), change nothing.
    """
    if not getattr(getattr(config, "archon", None), "strict", False):
        return None
    changed = [decision for decision in decisions if decision.requested not in (shown(None), AUTO)]
    lines = [f"\n  {d.option}: found {d.requested}{_instead(d.effective)}: {d.reason}" for d in changed]
    if not lines:
        return None
    return (
        f"{role}.archon.strict: found true, and settings that Archon would change; write the values that it would use, "
        f"leave unused options out, or set strict to false:{''.join(lines)}"
    )


def _instead(effective: str) -> str:
    return f"; {effective}" if effective in ("not used", "no effect") else f", would use {effective}"


def asked_value(engine: ArchonEngineConfig, option: str) -> Any:
    """The value of an option, given by its dotted name within the section."""
    value: Any = engine
    for name in option.split("."):
        value = getattr(value, name)
    return value


def shown(value: object) -> str:
    """A value as written in YAML; ``default`` for null."""
    return "default" if value is None else written_value(value)


def render_rules() -> str:
    """The rules as a Markdown table."""
    lines = ["| option | value | together with | result | reason |", "|---|---|---|---|---|"]
    for rule in RULES:
        then = f"`{shown(rule.becomes)}`, a recorded decision" if rule.effect == "decision" else f"error: {rule.fix}"
        lines.append(f"| `{rule.option}` | {shown(rule.asked)} | {rule.conflict} | {then} | {rule.reason} |")
    return "\n".join(lines) + "\n"
