"""What context parallelism asks of a module: that its attention, and nothing else, looks beyond single tokens."""

from __future__ import annotations

from torch import nn

from archon_core.contracts.module import accepts_sequence_shards
from archon_core.errors import ModelError
from archon_core.models.parallel_plan import ParallelPlan, matches
from archon_engine.nn.attention import PackedAttention


def check_context_plan(module: nn.Module, plan: ParallelPlan) -> None:
    """Check that every attention module of ``plan`` exchanges heads where tokens are cut, as ``PackedAttention`` does.

    Raises:
        ModelError: the plan names no attention although the model has heads, or a module that needs whole sequences;
            or the model has a ``PackedAttention`` that the plan does not name.
    """
    named = {name: part for name, part in module.named_modules() if any(matches(p, name) for p in plan.attention)}
    problems = [
        f"{name}: {type(part).__name__} needs whole sequences; use archon_engine.nn's PackedAttention"
        for name, part in named.items()
        if not accepts_sequence_shards(part)
    ]
    problems += [
        f"{name}: attention that the plan's `attention` does not name"
        for name, part in module.named_modules()
        if isinstance(part, PackedAttention) and name not in named
    ]
    if plan.heads is not None and not named:
        problems.append("`attention` names no module, although the model has attention heads")
    if problems:
        raise ModelError("parallel plan: it cannot be used for context parallelism:\n  " + "\n  ".join(problems))
