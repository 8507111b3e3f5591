"""Layouts: how an engine's ranks are arranged. Parse, validate, derive, explain; pure Python, no torch.

``parse_layout`` turns ``archon:d4p2t2`` into a ``Layout``, ``Layout.parallel_dims`` resolves it for a model, and
``ParallelDims`` knows every rank's place. ``engine_layouts`` and ``check_cluster`` do it for a whole experiment.
"""

from archon_core.layout.allocation_mode import allocation_mode_decision, allocation_mode_layouts
from archon_core.layout.backends import BUILTIN_BACKENDS, Backend, backend_table
from archon_core.layout.dims import ParallelDims
from archon_core.layout.engine_axes import refuse_axes
from archon_core.layout.experiment import (
    EngineShare,
    check_cluster,
    cluster_shares,
    engine_backends,
    engine_layouts,
)
from archon_core.layout.grammar import parse_layout
from archon_core.layout.grid import RankGrid
from archon_core.layout.layout import Layout

__all__ = [
    "BUILTIN_BACKENDS",
    "Backend",
    "EngineShare",
    "Layout",
    "ParallelDims",
    "RankGrid",
    "allocation_mode_decision",
    "allocation_mode_layouts",
    "backend_table",
    "check_cluster",
    "cluster_shares",
    "engine_backends",
    "engine_layouts",
    "parse_layout",
    "refuse_axes",
]
