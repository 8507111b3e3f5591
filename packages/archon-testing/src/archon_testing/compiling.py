"""Compilation without code generation, for tests of compiled blocks.

Graphs are captured and partitioned into forward and backward as usual, and then run with eager kernels: seconds instead
of Inductor's minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from archon_engine import compat


def compile_without_code(backend: str) -> list[frozenset[str]]:
    """Compile blocks with ``backend`` instead of Inductor from now on in this process.

    Args:
        backend: a backend of ``torch.compile`` without code generation: ``aot_eager``, or
            ``aot_eager_decomp_partition``, which recomputes as Inductor does.

    Returns:
        A list that grows by one set per compiled graph: the names of its call targets.
    """
    captured: list[frozenset[str]] = []

    def inductor(settings: dict[str, Any], **_: Any) -> Callable[..., Any]:
        compiled = compat.without_code(backend, settings)

        def compile_graph(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
            captured.append(frozenset(getattr(n.target, "__name__", str(n.target)) for n in graph.graph.nodes))
            return compiled(graph, inputs)

        return compile_graph

    compat.inductor = inductor
    return captured
