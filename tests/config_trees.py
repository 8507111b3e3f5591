"""Strategies for configuration files: trees of every name that an option, a plugin's section or AReaL's form has."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from archon_core.config.raw import RawMapping
from archon_core.config.sections import choose_sections
from archon_core.config.typed import field_types, section_of, takes_anything
from archon_core.contracts.engine_config import ROLES
from archon_core.plugins import SPEC_TYPES, TrainEngineSpec, registry
from archon_train.areal.keys import RENAMED, SECTIONS
from archon_train.areal.rules import IGNORED
from archon_train.experiment import ROOT, ExperimentConfig

Names = dict[str, "Names"]
"""Option or section -> the names inside it."""

SCALARS = (
    *(
        "",
        "null",
        "~",
        "None",
        "true",
        "False",
        "off",
        "0",
        "1",
        "-1",
        "3",
        "1e-5",
        "1e999",
        ".inf",
        "nan",
        "0x1F",
        "012",
    ),
    *("9" * 5000, "1_000", "???", "x", "a b", "archon:d1", "archon:d2p2", "archon:(attn:t4|ffn:t2e2)", "fsdp:d1", "d4"),
    *(
        "archon:d" + "9" * 40,
        "archon:",
        "local",
        "ray",
        "sft",
        "grpo",
        "gsm8k",
        "jsonl",
        "hf",
        "arithmetic",
        "adam",
        "wsd",
    ),
    *("ZBV", "1F1B", "full", "memory_budget", "batch", "group", "float64", "[1, 2]", "{a: 1}", "sglang:d4+archon:d4"),
    *("/", ".", "~", "~nobody/x", "a/b", "/dev/null", "a\0b", "x" * 5000, "é" * 200, "openai/gsm8k", "file.jsonl"),
    *("${seed}", "${actor.path}", "${a.b}", "${", "${}", "${oc.env:HOME}", "${oc.env:NO_SUCH,1}", "${oc.create:{a:1}}"),
    *(
        "${..backend}",
        "\\${x}",
        "${actor}",
        "${actor.${seed}}",
        "${oc.decode:x}",
        "${oc.dict.keys:actor}",
        "${trial_name}",
    ),
)
PATHS = (
    *(
        "/",
        ".",
        "..",
        "~",
        "~nobody-here/x",
        "a/b",
        "/dev/null",
        "/proc/1/mem",
        "a\0b",
        "x" * 5000,
        "x/" * 3000,
        "é" * 200,
    ),
    *("openai/gsm8k", "file.jsonl", "./x.json", "null", "", "${trial_name}", "${oc.env:HOME}", "\ud800", "a\nb"),
)
TEXTS = st.sampled_from(SCALARS) | st.text(max_size=8) | st.integers().map(str) | st.floats().map(str)


@dataclasses.dataclass(frozen=True)
class Plain:
    """A scalar without quotes, where YAML allows the text to stand so."""

    text: str


def known_names() -> Names:
    """Every name that a configuration may have somewhere, of all installed plugins."""
    names: Names = {}
    _add_schema(names, ExperimentConfig)
    choice = choose_sections(registry(), RawMapping({}), ROOT.with_engines(registry().all(TrainEngineSpec)))
    for section in (*choice.used, *choice.unused):
        _add_schema(_below(names, section.path), section.schema)
    for pattern in (*RENAMED, *RENAMED.values(), *(row.path for row in IGNORED)):
        for role in (*ROLES, *SECTIONS) if pattern.startswith("*") else ("",):
            _below(names, pattern.replace("*", role, 1) if role else pattern)
    for section in SECTIONS:
        names.setdefault(section, {})
    for entry in ("model_type", "vocab_size", "eos_token_id", "num_hidden_layers", "text_config"):
        _below(names, f"actor.model_config.{entry}")
    return names


def provided_names() -> list[str]:
    """Names of everything that plugins provide."""
    return sorted({spec.name for kind in SPEC_TYPES for spec in registry().all(kind.kind)})


def trees(names: Names, scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings whose names are mostly known and whose values are anything."""
    anything = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=4,
    )

    def section(names: Names, depth: int) -> st.SearchStrategy[dict[str, Any]]:
        if not names or depth > 4:
            return st.dictionaries(TEXTS, anything, max_size=2)
        values = {name: (section(below, depth + 1) | anything if below else anything) for name, below in names.items()}
        known = st.lists(st.sampled_from(sorted(names)), min_size=1, max_size=4, unique=True).flatmap(
            lambda chosen: st.fixed_dictionaries({name: values[name] for name in chosen})
        )
        strange = st.dictionaries(TEXTS, anything, max_size=1)
        return known | st.builds(lambda a, b: {**a, **b}, known, strange)

    return section(names, 0)


def typed_options() -> dict[str, Any]:
    """Dotted name -> annotation of every option, sections left out."""
    options: dict[str, Any] = {}

    def add(schema: type, path: str) -> None:
        for name, annotation in field_types(schema).items():
            below = f"{path}.{name}" if path else name
            section = section_of(annotation)
            if section is None:
                options[below] = annotation
            else:
                add(section, below)

    add(ExperimentConfig, "")
    choice = choose_sections(registry(), RawMapping({}), ROOT.with_engines(registry().all(TrainEngineSpec)))
    for section in (*choice.used, *choice.unused):
        add(section.schema, section.path)
    return options


def near_misses(options: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Options with values of their types, in range or not: trees that get as far as validation and the preflight."""
    texts = st.sampled_from([t for t in SCALARS if t]) | st.sampled_from(provided_names())
    numbers = st.sampled_from([0, 1, 2, 3, 4, 8, -1, 64, 10**12, 10**299, 10**400, "9" * 5000])
    paths = st.sampled_from(PATHS).map(Plain)
    entries = st.fixed_dictionaries(
        {},
        optional={
            "model_type": st.sampled_from(["qwen3", "qwen3_moe", "llama", "no_such"]) | texts,
            **{
                name: numbers | texts | st.lists(numbers, max_size=2) | st.none()
                for name in ("vocab_size", "eos_token_id", "num_hidden_layers", "num_experts", "text_config")
            },
        },
    )

    def value(annotation: Any) -> st.SearchStrategy[Any]:
        members = typing.get_args(annotation) or (annotation,)
        kinds = [
            strategy
            for kind, strategy in (
                (bool, st.sampled_from(["true", "no", "False"])),
                (int, numbers),
                (float, numbers | st.floats() | st.sampled_from([0.0, 0.5, 1.0])),
                (str, texts),
                (type(None), st.just("null")),
            )
            if kind in members
        ]
        if typing.get_origin(annotation) is list or any(typing.get_origin(m) is list for m in members):
            kinds.append(st.lists(numbers | texts, max_size=3))
        if takes_anything(annotation):
            kinds.append(entries)
        return st.one_of(kinds or [texts]).map(lambda v: v if isinstance(v, (dict, list)) else Plain(str(v)))

    values = {
        option: paths if option.endswith(("path", "fileroot", "_name")) else value(annotation)
        for option, annotation in options.items()
    }
    likely = ["actor.backend", "actor.model_config", "actor.path", "algorithm", "data.path", "data.dataset", "reward"]
    likely += ["actor.archon.pp_schedule", "ref.backend", "ref.path", "rollout.backend", "cluster.n_gpus_per_node"]
    chosen = st.lists(st.sampled_from(likely) | st.sampled_from(sorted(options)), min_size=1, max_size=5, unique=True)
    flat = chosen.flatmap(lambda names: st.fixed_dictionaries({name: values[name] for name in names}))
    return flat.map(_nested)


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for option, value in flat.items():
        *sections, name = option.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return tree


def as_yaml(value: Any) -> str:
    """The value in YAML's flow style."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(str(k))}: {as_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    if isinstance(value, Plain):
        safe = re.fullmatch(r"[^\s\x00-\x1f\x7f-\x9f'\"#,:{}\[\]&*!|>%@`?-][^\x00-\x1f\x7f-\x9f#,:{}\[\]]*", value.text)
        return value.text if safe and value.text.isprintable() else _quoted(value.text)
    return _quoted(str(value))


def scalars() -> st.SearchStrategy[Any]:
    """Scalars with and without quotes."""
    texts = TEXTS | st.sampled_from(provided_names())
    return texts.map(Plain) | texts


def _quoted(text: str) -> str:
    return json.dumps(text)


def _add_schema(names: Names, schema: type) -> None:
    for name, annotation in field_types(schema).items():
        below = names.setdefault(name, {})
        section = section_of(annotation)
        if section is not None:
            _add_schema(below, section)


def _below(names: Names, path: str) -> Names:
    for key in path.split("."):
        names = names.setdefault(key, {})
    return names
