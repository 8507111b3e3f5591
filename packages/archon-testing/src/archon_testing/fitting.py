"""Which layouts fit a model, by the engine's rules. Builds the module, so it runs in the process of a world."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from archon_core.errors import ArchonError, ConfigError, LayoutError
from archon_core.layout import ParallelDims, backend_table, parse_layout
from archon_core.layout.model_sizes import check_sizes
from archon_core.models.name_pattern import matches
from archon_core.models.parallel_plan import ParallelPlan
from archon_core.plugins import TrainEngineSpec, registry
from archon_engine.models.hf_config import load_hf_config
from archon_engine.models.initialize import build_module
from archon_engine.options.context_style import ContextSizes, split_context
from archon_engine.parallel.plan_checks import check_refusals, sharded_extents
from archon_testing.cases import Case, Variant


def misfits(cases: Sequence[Case], layouts: Sequence[str]) -> dict[str, str] | ArchonError:
    """Layout -> reason, for ``layouts`` that do not fit the model of every case; or the error of building a model.

    Args:
        cases: models or variants, with the attention of context ranks; their layouts are ignored.
        layouts: with backend and without schedule, such as ``archon:d2t2``.
    """
    found: dict[str, str] = {}
    backends = backend_table(registry().all(TrainEngineSpec))
    try:
        for case in cases:
            hf_config = load_hf_config(case.model_config)
            spec = registry().model_for(hf_config.model_type, case.model)
            model = spec.load()
            arguments = model.arguments.from_hf_config(hf_config, critic=case.critic)
            with torch.device("meta"):
                module = build_module(spec, arguments)
            plan = model.parallel_plan(arguments)
            extents = sharded_extents(module, plan)
            for text in layouts:
                layout = parse_layout(text, backends=backends)
                try:
                    check_refusals(plan, layout, option="--all")
                    check_sizes(extents, layout, option="--all")
                    dims = layout.parallel_dims(moe="moe" in spec.needs)
                    _check_experts(module, plan, ep=dims.ep, etp=dims.etp)
                    _check_context(case, plan, dims)
                except (LayoutError, ConfigError) as error:
                    found.setdefault(text, str(error).partition(": ")[2])
    except ArchonError as error:
        return error
    return found


def refused_variants(cases: Sequence[Case]) -> dict[Variant, str]:
    """Variant -> reason, for variants that the model's package refuses to build."""
    found: dict[Variant, str] = {}
    for case in cases:
        try:
            hf_config = load_hf_config(case.model_config)
            model = registry().model_for(hf_config.model_type, case.model).load()
            model.arguments.from_hf_config(hf_config, critic=case.critic)
        except ArchonError as error:
            found[case.variant] = str(error)
    return found


def _check_context(case: Case, plan: ParallelPlan, dims: ParallelDims) -> None:
    """Raise ConfigError where context ranks cannot share attention as the case asks."""
    sizes = ContextSizes(dims.cp, dims.tp, plan.heads.query if plan.heads else 0)
    split_context(case.cp_style, sizes, option="--cp-style")


def _check_experts(module: nn.Module, plan: ParallelPlan, *, ep: int, etp: int) -> None:
    """Raise LayoutError where experts or their intermediate size cannot be cut evenly."""
    for name, part in module.named_modules():
        if not any(role == "expert" and matches(pattern, name) for pattern, role in plan.roles.items()):
            continue
        n_experts, intermediate_size, _ = part.gate_proj.shape
        if n_experts % ep:
            raise LayoutError(f"--all: found e{ep}; it must divide the model's {n_experts} experts")
        if intermediate_size % etp:
            raise LayoutError(
                f"--all: found {etp} expert tensor ranks; they must divide the experts' size of {intermediate_size}"
            )
        return
