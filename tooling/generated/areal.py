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
"""Options of ``ArchonEngineConfig`` in AReaL's areal/api/cli_args.py that are ours too -> their default there."""

ENGINE_NOTES = {
    "attn_type": "null chooses by device: `varlen` on CUDA; no `tree`",
    "enable_compile": "on a CPU only when it is written",
    "ac_debug": "writes a file with what every block kept and recomputed, in bytes",
    "pp_schedule": "aliases and `GPipe` too; lists of our own",
    "pp_first_stage_less_layers": "null takes the embedding's cost",
    "pp_last_stage_less_layers": "null takes the head's cost",
    "use_deterministic_algorithms": "sets what Inductor of torch 2.13 reads as well",
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
            [code(field.name), code(theirs) if theirs else "not there", code(ours), ENGINE_NOTES.get(field.name, "")]
        )
    return table(["`actor.archon`", "AReaL's default", "ours", ""], rows)


def render_renamed() -> str:
    """Options that are called otherwise here."""
    return table(["in AReaL", "here"], [[_option(old), _option(new)] for old, new in RENAMED.items()])


def render_defaults() -> str:
    """Options whose default is another one."""
    rows = [[code(option), code(theirs), code(_ours(option))] for option, theirs in DEFAULTS.items()]
    rows += [
        [f"{code(option)}, with `p`", code(theirs), code(_ours(option))] for option, theirs in PIPELINE_DEFAULTS.items()
    ]
    return table(["option", "AReaL's default", "ours"], rows)


def render_null() -> str:
    """Options that may be null there."""
    return table(
        ["option", "`null` there is here"], [[_option(name), code(value)] for name, value in NULL_MEANS.items()]
    )


def render_datasets() -> str:
    """What AReaL's code knows about data sets."""
    rows = [
        [code(path), ", ".join(code(f"{option}={value}") for option, value in options.items())]
        for path, options in DATASETS.items()
    ]
    return table(["`train_dataset.path`", "filled in, where you leave it out"], rows)


def render_refused() -> str:
    """Options of which one value works."""
    rows = [[_option(rule.path), codes(rule.harmless), rule.reason] for rule in _rules("error")]
    return table(["option", "allowed", "because"], rows)


def render_without_effect() -> str:
    """Options that are accepted and do nothing."""
    return _without_effect(rule for rule in _rules("decision") if ".fsdp." not in rule.path)


def render_fsdp_renamed() -> str:
    """What becomes of the options under ``fsdp``."""
    rows = [[_option(old), _option(new), "the same"] for old, new in RENAMED.items() if ".fsdp." in old]
    for rule in IGNORED:
        if ".fsdp." in rule.path:
            rows.append([_option(rule.path), "no effect, a recorded decision", _unless(rule)])
    return table(["in AReaL", "here", ""], rows)


def _without_effect(rules: Iterable[Ignored]) -> str:
    return table(["option", "because", "passes in silence"], [[_option(r.path), r.reason, _silent(r)] for r in rules])


def _rules(otherwise: str) -> list[Ignored]:
    return [rule for rule in IGNORED if rule.otherwise == otherwise]


def _unless(rule: Ignored) -> str:
    silent = _silent(rule)
    return rule.reason + (f"; not even that for {silent}" if silent else "")


def _silent(rule: Ignored) -> str:
    texts = [*(code(value) if value else "empty" for value in rule.harmless)]
    if rule.same_as:
        texts.append(f"the value of {code(rule.same_as)}")
    return ", ".join(texts)


def _option(path: str) -> str:
    if path.startswith("*_dataset."):
        return codes(path.replace("*", split) for split in ("train", "valid"))
    return code(path.replace("*.", "SECTION.") if path.startswith("*.") else path)
