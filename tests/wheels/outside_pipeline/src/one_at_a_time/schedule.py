"""Which rank does what when, and which layers it has. Imports no torch."""

from archon_core.contracts.pipeline import Action, ActionKind, StagePlan
from archon_core.errors import LayoutError
from archon_core.models.stage import Stage


def rank_actions(n_ranks, n_stages, n_micro_batches):
    """Every micro-batch goes to the end and back before the next one starts."""
    kinds = (ActionKind.FORWARD, ActionKind.BACKWARD)
    return tuple(
        tuple(Action(rank, kind, number) for number in range(n_micro_batches) for kind in kinds)
        for rank in range(n_ranks)
    )


def split_evenly(layer_costs, *, embed_cost, head_cost, schedule, n_ranks, options, role):
    """One stage per rank, with as many layers as the others, give or take one."""
    n_layers = len(layer_costs)
    if n_layers < n_ranks:
        raise LayoutError(f"{role}.backend: found {n_layers} layers for {n_ranks} stages; use at most p{n_layers}")
    ends = [n_layers * (rank + 1) // n_ranks for rank in range(n_ranks)]
    stages = tuple(
        Stage(tuple(range(start, end)), has_embed=start == 0, has_head=end == n_layers)
        for start, end in zip([0, *ends], ends, strict=False)
    )
    return StagePlan(stages, tuple(range(n_ranks)))
