"""Checks that a model's spec is complete and cheap to import, and that its capabilities are true."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from importlib.metadata import entry_points
from typing import Any

import torch

from archon_core.errors import ArchonError
from archon_core.models.stage import Stage
from archon_core.plugins import ModelSpec
from archon_engine.models.hf_config import load_hf_config
from archon_engine.models.initialize import build_module
from archon_engine.models.parameter_names import weight_shapes
from archon_engine.parallel.plan_checks import check_context_plan, sharded_extents
from archon_testing.cases import Case
from archon_testing.model_checks.built import require

IMPORT_CHECK = """
import importlib, sys
plugin = importlib.import_module(sys.argv[1])
for name in dir(plugin):
    if name.startswith("archon_"):
        list(getattr(plugin, name)())
heavy = [name for name in ("torch", "transformers") if name in sys.modules]
if heavy:
    sys.exit(f"importing {sys.argv[1]} and asking it for its specs imports {' and '.join(heavy)}; a spec names its "
             "parts as 'package.module:attribute' strings: keep modules that need torch out of the plugin module")
"""


def plugin_module(spec: ModelSpec) -> str:
    """The module that the entry point of the spec's distribution names."""
    found = [point.module for point in entry_points(group="archon") if point.dist and point.dist.name == spec.origin]
    require(
        found,
        f"model {spec.name!r}: found no entry point of group 'archon' in {spec.origin or 'any distribution'}; declare "
        "one in pyproject.toml and install the package, or set `plugin` of the suite to the plugin's module",
    )
    return found[0]


def check_spec_parts(spec: ModelSpec, case: Case, *, needs_tiny: bool) -> None:
    """Load all parts of the spec and check their consistency, on the meta device."""
    name = f"model {spec.name!r}"
    require(spec.summary, f"{name}: its spec has no summary; `archon plugins` shows one line")
    require(spec.tiny_config or not needs_tiny, f"{name}: its spec names no tiny_config, which `archon verify` needs")
    loaded = spec.load()
    hf_config = load_hf_config(case.model_config)
    require(
        spec.takes_any or hf_config.model_type in spec.model_types,
        f"{name}: its configuration has model_type {hf_config.model_type!r}, its spec serves {spec.model_types}",
    )
    arguments = loaded.arguments.from_hf_config(hf_config, critic=case.critic)
    frozen = is_dataclass(arguments) and arguments.__dataclass_params__.frozen
    require(frozen, f"{name}: its arguments are no frozen dataclass; write @dataclass(frozen=True)")
    require(fields(arguments), f"{name}: its arguments have no fields")
    with torch.device("meta"):
        module = build_module(spec, arguments)
    plan = loaded.parallel_plan(arguments)
    plan.validate(module)
    loaded.weight_map(arguments).resolve(weight_shapes(module))
    _check_capabilities(spec, case, module, plan)
    if "pp" in spec.capabilities:
        _check_stages(spec, arguments, set(weight_shapes(module)), len(module.layers))


def _check_capabilities(spec: ModelSpec, case: Case, module: torch.nn.Module, plan: object) -> None:
    name = f"model {spec.name!r}"
    if "tp" in spec.capabilities:
        extents = sharded_extents(module, plan)
        require(
            extents.by_tensor_ranks, f"{name}: it declares tp, and its parallel plan cuts nothing over tensor ranks"
        )
        require(
            extents.allows_tensor(2),
            f"{name}: it declares tp, and two tensor ranks cannot cut its configuration for tests: "
            f"{dict(extents.by_tensor_ranks)}; give it even sizes",
        )
    if "cp" in spec.capabilities:
        try:
            check_context_plan(module, plan)
        except ArchonError as error:
            raise AssertionError(f"{name}: it declares cp, and {error}") from error
    if case.variant == "tied":
        require(
            module.head.weight is module.embed.weight,
            f"{name}: it declares tied, and with tie_word_embeddings its head.weight is not embed.weight; tie them in "
            "the module, and add Tie('head.weight', to='embed.weight') to the weight map",
        )


def _check_stages(spec: ModelSpec, arguments: Any, whole: set[str], n_layers: int) -> None:
    half = max(1, n_layers // 2)
    stages = [
        Stage(tuple(range(half)), has_embed=True, has_head=False),
        Stage(tuple(range(half, n_layers)), has_embed=False, has_head=True),
    ]
    with torch.device("meta"):
        names = [set(weight_shapes(build_module(spec, arguments, stage))) for stage in stages]
    require(
        set().union(*names) == whole,
        f"model {spec.name!r}: it declares pp, and its two halves do not have the weights of the whole under the same "
        f"names: {sorted(set().union(*names) ^ whole)}; number layers over the whole model",
    )
