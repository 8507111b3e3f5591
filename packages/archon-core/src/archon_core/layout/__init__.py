"""Layouts: the arrangement of an engine's ranks. Parses, validates and explains them; pure Python, no torch.

``parse_layout`` turns ``archon:d4p2t2`` into a ``Layout``, ``Layout.parallel_dims`` resolves it for a model, and
``ParallelDims`` has every rank's coordinates. ``archon_train.cluster`` handles the layouts of a whole experiment.
"""

from archon_core.layout.backends import BUILTIN_BACKENDS, Backend, backend_table
from archon_core.layout.dims import ParallelDims
from archon_core.layout.engine_axes import refuse_axes
from archon_core.layout.grammar import parse_layout
from archon_core.layout.grid import RankGrid
from archon_core.layout.layout import Layout

__all__ = [
    "BUILTIN_BACKENDS",
    "Backend",
    "Layout",
    "ParallelDims",
    "RankGrid",
    "backend_table",
    "parse_layout",
    "refuse_axes",
]
