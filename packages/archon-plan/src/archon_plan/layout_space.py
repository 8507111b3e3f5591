"""All layouts of a model on a number of ranks: the sizes of axes that the layout rules and the model's sizes allow."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from archon_core.layout.dims import ParallelDims
from archon_core.models.anatomy import ModelAnatomy
from archon_engine.options.context_style import AUTO, ContextSizes, permits
from archon_plan.extents import context_sizes, expert_extents, sharded_extents

ALL_AXES = "rdtpce"
"""Letters of all axes of a training layout."""


@lru_cache(maxsize=4096)
def divisors(number: int) -> tuple[int, ...]:
    """All divisors in increasing order."""
    return tuple(size for size in range(1, number + 1) if number % size == 0)


def valid_dims(
    anatomy: ModelAnatomy, world: int, *, axes: str = ALL_AXES, cp_style: str = AUTO
) -> Iterator[ParallelDims]:
    """All sizes of axes on exactly ``world`` ranks, in lexicographic order of p, t, c, r, e and etp.

    A size of p is valid if every pipeline rank gets a layer, the embedding or the head; whether a schedule can split
    the model is another question.

    Args:
        anatomy: of the model.
        world: number of ranks.
        axes: letters that may have a size above 1, as both the engine and the model support them.
        cp_style: how context ranks share attention (``archon.cp_style``).
    """
    extents, heads = sharded_extents(anatomy), context_sizes(anatomy, ParallelDims()).query_heads

    def sizes(letter: str, ranks: int) -> tuple[int, ...]:
        return divisors(ranks) if letter in axes else (1,)

    for pp in sizes("p", world):
        if pp > len(anatomy.layers) + 2:
            continue
        stage = world // pp
        for tp in sizes("t", stage):
            if not extents.allows_tensor(tp):
                continue
            for cp in sizes("c", stage // tp):
                if not permits(cp_style, ContextSizes(cp, tp, heads)):
                    continue
                data = stage // (tp * cp)
                for replicas in sizes("r", data):
                    shards = data // replicas
                    if shards > 1 and "d" not in axes:
                        continue
                    for ep, etp in _expert_sizes(anatomy, shards * cp * tp, tp, axes):
                        yield ParallelDims(pp, replicas, shards, cp, tp, ep, etp)


def _expert_sizes(anatomy: ModelAnatomy, ranks: int, tp: int, axes: str) -> Iterator[tuple[int, int]]:
    """Sizes of ep and etp whose product divides ``ranks``. Without an expert axis only the automatic one is left."""
    n_experts, inner = expert_extents(anatomy)
    if not n_experts:
        yield 1, 1
        return
    if "e" not in axes:
        if inner % tp == 0:
            yield 1, tp
        return
    for ep in divisors(ranks):
        if n_experts % ep == 0:
            for etp in divisors(ranks // ep):
                if inner % etp == 0:
                    yield ep, etp
