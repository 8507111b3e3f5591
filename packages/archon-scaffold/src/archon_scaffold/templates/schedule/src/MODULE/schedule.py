"""The schedule: which forward and backward passes each rank runs, in which order.

Lists need not say when anything happens, nor send anything: ranks wait for one another's results. Every micro-batch
passes every stage once, with F and then B; or with F, I and W, where the gradients of inputs and weights are apart.
"""

from __future__ import annotations

from archon_core.errors import ConfigError
from archon_core.pipeline import Action, ActionKind, RankActions


def rank_actions(n_ranks: int, n_stages: int, n_micro_batches: int) -> RankActions:
    """Each rank runs ahead by as many forward passes as there are ranks from it to the end, then goes back and forth.

    Raises:
        ConfigError: there is not one stage for each rank.
    """
    if n_stages != n_ranks:
        raise ConfigError(f"found {n_stages} stages on {n_ranks} ranks; this schedule has one stage per rank")
    return tuple(_actions_of(rank, n_ranks - rank, n_micro_batches) for rank in range(n_ranks))


def _actions_of(rank: int, ahead: int, n_micro_batches: int) -> tuple[Action, ...]:
    forward = [Action(rank, ActionKind.FORWARD, number) for number in range(n_micro_batches)]
    backward = [Action(rank, ActionKind.BACKWARD, number) for number in range(n_micro_batches)]
    order = forward[:ahead]
    for number in range(n_micro_batches):
        order.append(backward[number])
        order += forward[ahead + number : ahead + number + 1]
    return tuple(order)
