"""Tables of docs/from-areal.md and docs/from-areal-fsdp.md, from the translation that runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from archon_core.config.raw import RawMapping
from archon_core.config.root import default_text
from archon_core.config.sections import build_schema, choose_sections
from archon_core.plugins import TrainEngineSpec, registry
from archon_engine.options.archon import ArchonOptions
from archon_train.areal.keys import (
    DATASETS,
    DEFAULTS,
    IGNORED,
    NULL_MEANS,
    PIPELINE_DEFAULTS,
    RENAMED,
    Ignored,
)
from archon_train.experiment import ROOT
from generated.tables import code, codes, table

ENGINE_DEFAULTS = {
    "attn_type": "varlen",
    "offload_params": "false",
    "enable_compile": "true",
    "ac_mode": "selective",
    "selective_ac_option": "op",
    "ac_memory_budget": "0.5",
    "ac_debug": "false",
    "pp_schedule": "Interleaved1F1B",
    "pp_layers_per_stage": "null",
    "pp_first_stage_less_layers": "1",
    "pp_last_stage_less_layers": "1",
    "reshard_after_forward_policy": "default",
    "use_deterministic_algorithms": "false",
    "moe_router_dtype": "fp32",
}
"""Options that AReaL's ``ArchonEngineConfig`` (areal/api/cli_args.py) shares with Archon -> AReaL's default."""

ENGINE_NOTES = {
    "attn_type": "null chooses by device: `varlen` on CUDA; no `tree`",
    "enable_compile": "on a CPU only if you write it",
    "ac_debug": "writes a file with the bytes that every block kept and recomputed",
    "pp_schedule": "also takes aliases and `GPipe`; Archon has its own schedules",
    "pp_first_stage_less_layers": "null uses the embedding's cost",
    "pp_last_stage_less_layers": "null uses the head's cost",
    "use_deterministic_algorithms": "also sets the variables of torch 2.13's Inductor",
}


def _ours(option: str) -> str:
    """Archon's default of an option, with the sections of the plugins that a file without entries uses."""
    root = ROOT.with_engines(registry().all(TrainEngineSpec))
    schema = build_schema(ROOT.schema, choose_sections(registry(), RawMapping({}), root).used)
    return default_text(schema, option) or "null"


def render_engine_options() -> str:
    """``actor.archon``, option by option: AReaL's default and ours."""
    unknown = {*ENGINE_DEFAULTS, *ENGINE_NOTES} - {field.name for field in dataclasses.fields(ArchonOptions)}
    assert not unknown, f"no options of ours: {unknown}"
    rows = []
    for field in dataclasses.fields(ArchonOptions):
        name = field.name
        theirs = ENGINE_DEFAULTS.get(name)
        ours = _ours(f"actor.archon.{name}")
        ours = ours.lower() if ours in ("True", "False") else ours
        rows.append(
            [code(field.name), code(theirs) if theirs else "no such option", code(ours), ENGINE_NOTES.get(name, "")]
        )
    return table(["`actor.archon`", "AReaL's default", "Archon's default", ""], rows)


def render_renamed() -> str:
    """Options with another name in Archon."""
    return table(["AReaL", "Archon"], [[_option(old), _option(new)] for old, new in RENAMED.items()])


def render_defaults() -> str:
    """Options with another default in Archon."""
    rows = [[code(option), code(theirs), code(_ours(option))] for option, theirs in DEFAULTS.items()]
    rows += [
        [f"{code(option)}, with `p`", code(theirs), code(_ours(option))] for option, theirs in PIPELINE_DEFAULTS.items()
    ]
    return table(["option", "AReaL's default", "Archon's default"], rows)


def render_null() -> str:
    """Options that may be null in AReaL."""
    return table(
        ["option", "AReaL's `null` means"], [[_option(name), code(value)] for name, value in NULL_MEANS.items()]
    )


def render_datasets() -> str:
    """Options that AReaL's code derives from the name of a data set."""
    rows = [
        [code(path), ", ".join(code(f"{option}={value}") for option, value in options.items())]
        for path, options in DATASETS.items()
    ]
    return table(["`train_dataset.path`", "defaults for options that you leave out"], rows)


def render_refused() -> str:
    """Options with a single valid value."""
    rows = [[_option(rule.path), codes(rule.harmless), rule.reason] for rule in _rules("error")]
    return table(["option", "allowed", "reason"], rows)


def render_without_effect() -> str:
    """Options that Archon accepts without effect."""
    return _without_effect(rule for rule in _rules("decision") if ".fsdp." not in rule.path)


def render_fsdp_renamed() -> str:
    """The options under ``fsdp`` and their equivalents."""
    rows = [[_option(old), _option(new), "the same"] for old, new in RENAMED.items() if ".fsdp." in old]
    for rule in IGNORED:
        if ".fsdp." in rule.path:
            rows.append([_option(rule.path), "no effect, a recorded decision", _unless(rule)])
    return table(["AReaL", "Archon", ""], rows)


def _without_effect(rules: Iterable[Ignored]) -> str:
    return table(
        ["option", "reason", "values without a decision"], [[_option(r.path), r.reason, _silent(r)] for r in rules]
    )


def _rules(otherwise: str) -> list[Ignored]:
    return [rule for rule in IGNORED if rule.otherwise == otherwise]


def _unless(rule: Ignored) -> str:
    silent = _silent(rule)
    return rule.reason + (f"; no decision for {silent}" if silent else "")


def _silent(rule: Ignored) -> str:
    texts = [*(code(value) if value else "empty" for value in rule.harmless)]
    if rule.same_as:
        texts.append(f"the value of {code(rule.same_as)}")
    return ", ".join(texts)


def _option(path: str) -> str:
    if path.startswith("*_dataset."):
        return codes(path.replace("*", split) for split in ("train", "valid"))
    return code(path.replace("*.", "SECTION.") if path.startswith("*.") else path)
