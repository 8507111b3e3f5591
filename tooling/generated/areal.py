"""Tables of docs/from-areal.md and docs/from-areal-fsdp.md, and the page docs/reference/areal.md, from the translation
that runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import areal_files
from archon_core.config.raw import RawMapping
from archon_core.config.root import default_text
from archon_core.config.sections import build_schema, choose_sections
from archon_core.config.typed import knows
from archon_core.plugins import TrainEngineSpec, registry
from archon_engine.options.archon import ArchonOptions
from archon_train.areal.facts import Fact, classes, facts, names_in, section_classes
from archon_train.areal.ignored import is_open, rule_for
from archon_train.areal.keys import (
    DATASETS,
    DEFAULTS,
    MEGATRON_TRANSLATED,
    NULL_MEANS,
    PIPELINE_DEFAULTS,
    RENAMED,
)
from archon_train.areal.names import new_name
from archon_train.areal.rules import IGNORED, SCRIPT_OPTIONS, Ignored
from archon_train.areal.scheduling import DROPPED
from archon_train.experiment import ROOT
from generated.tables import code, codes, table

ENGINE_NOTES = {
    "attn_type": "null chooses by device: `varlen` on CUDA; no `tree`",
    "enable_compile": "on a CPU only if you write it",
    "ac_debug": "writes a file with the bytes that every block kept and recomputed",
    "pp_schedule": "also takes aliases and `GPipe`; Archon has its own schedules",
    "pp_first_stage_less_layers": "null uses the embedding's cost",
    "pp_last_stage_less_layers": "null uses the head's cost",
    "use_deterministic_algorithms": "also sets the variables of torch 2.13's Inductor",
}

ELSEWHERE = {
    "recover.mode": "`trainer.auto_resume` or `trainer.resume`",
    "allocation_mode": "ignored, as a decision that shows the backends to write",
    "train_dataset.type": "`algorithm`",
}
"""Options whose values are translated one by one (``archon_train.areal.meaning``)."""


def _ours(option: str) -> str:
    """Archon's default of an option, with the sections of the plugins that a file without entries uses."""
    root = ROOT.with_engines(registry().all(TrainEngineSpec))
    schema = build_schema(ROOT.schema, choose_sections(registry(), RawMapping({}), root).used)
    return default_text(schema, option) or "null"


def render_engine_options() -> str:
    """``actor.archon``, option by option: AReaL's default and ours."""
    unknown = set(ENGINE_NOTES) - {field.name for field in dataclasses.fields(ArchonOptions)}
    assert not unknown, f"no options of ours: {unknown}"
    rows = []
    for name in (field.name for field in dataclasses.fields(ArchonOptions)):
        theirs = facts(f"actor.archon.{name}")
        default = code(theirs[0].shown_default) if theirs else "no such option"
        rows.append([code(name), default, code(_ours(f"actor.archon.{name}")), ENGINE_NOTES.get(name, "")])
    return table(["`actor.archon`", "AReaL's default", "Archon's default", ""], rows)


def render_renamed() -> str:
    """Options with another name in Archon."""
    return table(["AReaL", "Archon"], [[_option(old), _option(new)] for old, new in RENAMED.items()])


def render_defaults() -> str:
    """Options with another default in Archon."""
    rows = []
    for option, theirs in (DEFAULTS | PIPELINE_DEFAULTS).items():
        ours = _ours(option.replace("*", "actor"))
        rows.append([_option(option) + (", with `p`" if option in PIPELINE_DEFAULTS else ""), code(theirs), code(ours)])
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


def render_megatron() -> str:
    """Options under ``megatron`` that become options of the Archon engine."""
    rows = [[code(f"SECTION.megatron.{old}"), code(f"SECTION.{new}")] for old, new in MEGATRON_TRANSLATED.items()]
    return table(["AReaL", "Archon"], rows)


def render_files() -> str:
    """AReaL's example configurations and what a dry run makes of each."""
    rows = [[code(found.file), found.outcome, found.line] for found in areal_files.outcomes(areal_files.read_stored())]
    return table(["file", "outcome", "reason"], rows)


def render_scripts() -> str:
    """Names that AReaL's example scripts add to their files."""
    return codes(sorted(SCRIPT_OPTIONS)) + "\n"


LISTED = {"SchedulingSpec": "actor.scheduling_spec"}
"""Class of the entries of a list in AReaL's files -> the section that the list becomes."""


def render_options() -> str:
    """Every option of AReaL by class, and what becomes of it."""
    page = [
        "# AReaL's options\n",
        "Generated by `python tooling/docs.py`: every option of AReaL's configuration classes\n"
        "(areal/api/cli_args.py at cbff54d64, 2026-08-22), and what becomes of it in a file that `archon train`\n"
        "reads. Options without effect and translated options are decisions. A refused option is an error unless\n"
        "it has the value shown, or else AReaL's default. The options of `sglang` and `vllm` belong to the\n"
        "packages that run these servers. [From AReaL](../from-areal.md) explains the differences.\n",
    ]
    paths = _paths_by_class()
    for owner in classes():
        if owner in paths:
            listed = LISTED.get(owner)
            rows = [
                [code(fact.name), code(fact.shown_default), _outcome(f"{listed}.{fact.name}" if listed else path)]
                for fact, path in paths[owner]
            ]
            page += [f"## {owner}\n", table(["option", "AReaL's default", "in Archon"], rows)]
    return "\n".join(page)


def _paths_by_class() -> dict[str, list[tuple[Fact, str]]]:
    """Class -> its options with the first dotted name of each."""
    found: dict[str, dict[str, tuple[Fact, str]]] = {}
    for path in _walk(""):
        for fact in facts(path):
            found.setdefault(fact.owner, {}).setdefault(fact.name, (fact, path))
    return {owner: list(options.values()) for owner, options in found.items()}


def _walk(section: str) -> Iterator[str]:
    """The dotted names of AReaL's options, shallow ones first."""
    paths = [f"{section}.{name}".lstrip(".") for name in names_in(section)]
    paths = [path for path in paths if path not in ("sglang", "vllm")]
    yield from paths
    for path in paths:
        if section_classes(facts(path)) and path != "teacher.train":
            yield from _walk(path)


def _outcome(path: str) -> str:
    path = new_name(path) or path
    section, _, name = path.rpartition(".")
    if section in LISTED.values() and name in DROPPED:
        return f"no effect: {DROPPED[name]}"
    if _is_honoured(path):
        return _option(path)
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    rule = _rule_above(path)
    if rule is None:
        return "a section" if is_open(path) else "refused"
    if rule.otherwise == "error":
        return f"refused, except {codes(rule.harmless)}: {rule.reason}"
    return rule.reason if rule.otherwise == "translated" else f"no effect: {rule.reason}"


def _rule_above(path: str) -> Ignored | None:
    """The row for an option or for the nearest section that has one."""
    while path:
        if rule := rule_for(path):
            return rule
        path = path.rpartition(".")[0]
    return None


@functools.cache
def _is_honoured(path: str) -> bool:
    """Whether the schema, with the sections of any plugin of this repository, has an option."""
    root = ROOT.with_engines(registry().all(TrainEngineSpec))
    choice = choose_sections(registry(), RawMapping({}), root)
    inside = ((path.removeprefix(f"{section.path}."), section) for section in (*choice.used, *choice.unused))
    return knows(ROOT.schema, path) or any(name != path and knows(section.schema, name) for name, section in inside)


def render_refused() -> str:
    """Options with a single valid value."""
    rows = [[_option(rule.path), codes(rule.harmless), rule.reason] for rule in _rules("error")]
    return table(["option", "allowed", "reason"], rows)


def render_without_effect() -> str:
    """Options that Archon accepts without effect."""
    shown = (rule for rule in _rules("decision") if ".fsdp." not in rule.path and ".megatron." not in rule.path)
    return _without_effect(shown)


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
    return [
        rule
        for rule in IGNORED
        if rule.otherwise == otherwise
        and not _is_honoured(rule.path.replace("*_dataset", "data").replace("*", "actor"))
    ]


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
