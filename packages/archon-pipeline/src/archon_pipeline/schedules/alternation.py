"""One forward, one backward: how 1F1B and its interleaved form order the actions of a rank."""

from __future__ import annotations

from collections.abc import Sequence

from archon_core.contracts.pipeline import Action


def alternate(forward: Sequence[Action], backward: Sequence[Action], *, ahead: int) -> tuple[Action, ...]:
    """``ahead`` forward passes, then forward and backward in turns, then the backward passes that are left.

    Args:
        forward: the rank's forward passes, in order.
        backward: its backward passes, as many.
        ahead: forward passes before the turns begin; more than there are means all.
    """
    ahead = min(ahead, len(forward))
    order = list(forward[:ahead])
    for further, back in zip(forward[ahead:], backward, strict=False):
        order += (further, back)
    order += backward[len(forward) - ahead :]
    return tuple(order)
