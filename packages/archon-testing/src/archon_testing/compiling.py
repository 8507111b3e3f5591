"""Compiling without generating code, for tests of compiled blocks.

Graphs are captured and cut into forward and backward as ever, and then run by the kernels that eager code uses: seconds
in place of Inductor's minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from archon_engine import compat


def compile_without_code(backend: str) -> list[frozenset[str]]:
    """Have the blocks that are compiled in this process from now on do with ``backend`` in place of Inductor.

    Args:
        backend: one of ``torch.compile``'s that generates no code: ``aot_eager``, or ``aot_eager_decomp_partition``,
            which recomputes as Inductor does.

    Returns:
        The names of what each captured graph calls: one more per graph, as they are compiled.
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
