"""Which layouts fit a model, by the engine's own rules. Runs in the process of a world, since it builds the module."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from archon_core.errors import ArchonError, LayoutError
from archon_core.layout import backend_table, parse_layout
from archon_core.models.hf_config import load_hf_config
from archon_core.parallel.sizes import check_sizes, sharded_extents
from archon_core.plugins import TrainEngineSpec, registry
from archon_testing.cases import Case


def reasons_against(cases: Sequence[Case], layouts: Sequence[str]) -> dict[str, str] | ArchonError:
    """For each of ``layouts`` that does not fit the model of every case, why; or why there is no model.

    Args:
        cases: of different models or variants; their own layouts are not looked at.
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
                module = model.module(arguments)
            extents = sharded_extents(module, model.parallel_plan(arguments))
            for text in layouts:
                layout = parse_layout(text, backends=backends)
                try:
                    check_sizes(extents, layout, option="--all")
                    layout.parallel_dims(moe="moe" in spec.needs)
                except LayoutError as error:
                    found.setdefault(text, str(error).partition(": ")[2])
    except ArchonError as error:
        return error
    return found
