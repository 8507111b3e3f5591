"""Generates the tables of docs/models.md about what each model can do, from its declarations and from its parts.

A model is built from its configuration for tests, on the meta device. So a package that is installed has its row.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from archon_core.contracts.adapters import AdapterSpec
from archon_core.contracts.spec import load_target
from archon_core.errors import ArchonError
from archon_core.layout.axes import AXIS_NAMES
from archon_core.models.name_pattern import matches_any
from archon_core.models.parallel_plan import ParallelPlan, ancestors
from archon_core.models.weight_map import ResolvedMap
from archon_core.plugins import ModelSpec, registry
from archon_engine.models.capabilities import CAPABILITY_OF_AXIS
from archon_engine.models.hf_config import load_hf_config
from archon_engine.models.initialize import build_module
from archon_engine.models.parameter_names import weight_shapes
from archon_lora.options import LoraOptions
from generated.tables import code, codes, table

RESULTS = "tooling/generated/verified.json"

LETTERS = [letter for letter in AXIS_NAMES if letter not in CAPABILITY_OF_AXIS] + list(CAPABILITY_OF_AXIS)

FP8: Mapping[str, Any] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
"""``quantization_config`` of the checkpoints that DeepSeek publishes. It says which tensors are encoded; in MXFP4
checkpoints, names of tensors do."""

ENCODINGS: Mapping[str, str] = {"Mxfp4": "MXFP4", "BlockFp8": "FP8 in blocks"}
"""Class of an encoding -> its name in the table."""


@dataclass(frozen=True)
class Built:
    """A model from its configuration for tests.

    Attributes:
        spec, module, plan: of the model.
        weights: the map of its plain checkpoints.
        of_fp8: the map of its FP8 checkpoints; ``None`` if it refuses them.
    """

    spec: ModelSpec
    module: nn.Module
    plan: ParallelPlan
    weights: ResolvedMap
    of_fp8: ResolvedMap | None

    @classmethod
    def of(cls, spec: ModelSpec) -> Built:
        """Build the model of a spec on the meta device."""
        entries = load_target(spec.tiny_config, origin=spec.origin)()
        hf_config, loaded = load_hf_config(entries), spec.load()
        arguments = loaded.arguments.from_hf_config(hf_config, critic=False)
        with torch.device("meta"):
            module = build_module(spec, arguments)
        shapes = weight_shapes(module)
        weights, of_fp8 = loaded.weight_map(arguments).resolve(shapes), None
        with contextlib.suppress(ArchonError):
            quantised = load_hf_config({**entries, "quantization_config": dict(FP8)})
            arguments_of_fp8 = loaded.arguments.from_hf_config(quantised, critic=False)
            of_fp8 = loaded.weight_map(arguments_of_fp8).resolve(shapes)
        return cls(spec, module, loaded.parallel_plan(arguments), weights, of_fp8)


def models(is_ours: Callable[[str], bool]) -> list[ModelSpec]:
    """The installed models of this repository, by name."""
    return sorted((spec for spec in registry().all(ModelSpec) if is_ours(spec.origin)), key=lambda spec: spec.name)


def render_capabilities(is_ours: Callable[[str], bool]) -> str:
    """Axes, heads, forms of checkpoints, generation and adapters of each model."""
    rows = []
    for spec in models(is_ours):
        built = Built.of(spec)
        rows.append(
            [
                code(spec.name),
                " ".join(code(letter) for letter in LETTERS if runs(spec, letter)),
                _yes("tied" in spec.capabilities),
                _yes("critic" in spec.capabilities),
                _yes("tree" in spec.capabilities),
                "; also read: ".join(dict.fromkeys(_forms(built))),
                ", ".join(_encodings(built)) or "no",
                _yes(bool(built.plan.attention)),
                _adapted(built),
            ]
        )
    columns = [
        "model",
        "layouts",
        "tied head",
        "critic",
        "shared prefixes",
        "checkpoints",
        "quantised",
        "generation",
        "LoRA",
    ]
    return table(columns, rows)


def render_verified(root: Path, is_ours: Callable[[str], bool]) -> str:
    """What ``archon verify`` found, from the committed results."""
    results = json.loads((root / RESULTS).read_text(encoding="utf-8"))
    unknown = results.keys() - {spec.name for spec in registry().all(ModelSpec)}
    if unknown:
        raise SystemExit(f"{RESULTS}: found {', '.join(sorted(unknown))}, which no installed package provides")
    rows = []
    for spec in models(is_ours):
        of_model = results.get(spec.name, {})
        if not of_model:
            rows.append([code(spec.name), "", "", "no recorded run", ""])
        for what, found in of_model.items():
            rows.append(
                [
                    code(spec.name),
                    what,
                    f"{found['layouts']} of up to {found['world']} ranks, {found['cases']} runs",
                    f"{found['error']:.0e} ({found['dtype']})",
                    found["torch"],
                ]
            )
    return table(["model", "trained", "layouts", "largest error", "torch"], rows)


def runs(spec: ModelSpec, letter: str) -> bool:
    """Whether a model runs on an axis with a size above 1."""
    capability = CAPABILITY_OF_AXIS.get(letter)
    return capability is None or capability in spec.capabilities


def _forms(built: Built) -> Iterator[str]:
    """The forms of its checkpoints: the one that is saved, and others that are read."""
    of_experts = [name for name in built.weights.links_of_ours if _is_of_experts(built, name)]
    maps = [each for each in (built.weights, built.of_fp8) if each is not None]
    for weights in (other for each in maps for other in (each, *each.alternatives)):
        if not of_experts:
            yield "as transformers saves them"
            continue
        links = [link for name in of_experts for link in weights.links_of_ours[name]]
        yield "experts one by one" if all(link.stacked for link in links) else "experts fused"


def _is_of_experts(built: Built, name: str) -> bool:
    """Whether a parameter belongs to stacked experts, or to an adapter inside of them."""
    patterns = [pattern for pattern, role in built.plan.roles.items() if role == "expert"]
    return any(matches_any(patterns, part) for part in ancestors(name))


def _encodings(built: Built) -> Iterator[str]:
    """Quantised forms that are decoded while they are read."""
    found = set()
    maps = [each for each in (built.weights, built.of_fp8) if each is not None]
    for weights in (other for each in maps for other in (each, *each.alternatives)):
        encoded: Mapping[str, Any] = getattr(weights, "encoded", {})
        found |= {type(tensor.encoding).__name__ for tensor in encoded.values()}
    yield from sorted(ENCODINGS.get(name, name) for name in found)


def _adapted(built: Built) -> str:
    """The projections that LoRA adapts by default, with those of experts."""
    before = set(weight_shapes(built.module))
    adapter = registry().get(AdapterSpec, "lora").load()(LoraOptions(use_lora=True), role="actor")
    adapter.attach(built.module, built.plan, built.weights)
    shapes = {name: shape for name, shape in weight_shapes(built.module).items() if name not in before}
    adapter.weight_map(built.weights, shapes)
    parts = adapter.file_config(None)["target_modules"]
    experts = any(_is_of_experts(built, name) for name in shapes)
    return codes(parts) + (", experts too" if experts else "")


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
