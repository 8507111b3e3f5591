"""What a way of dispatching tokens is.

Legend: T tokens of this rank, N rows that reach it, K experts per token, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class DispatchPlan:
    """What combining must know of the dispatch before it, where rows are exchanged.

    Attributes:
        n_tokens: T.
        token_of_row: int64 [rows sent], the token that each row is a copy of; in the order in which rows are sent.
        sent: rows that go to each rank.
        received: rows that come from each rank.
    """

    n_tokens: int
    token_of_row: Tensor
    sent: tuple[int, ...]
    received: tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """What reaches a rank, for its experts.

    Attributes:
        x: [N, H].
        experts: int [N, K], numbers among the experts here; -1 for one that is elsewhere.
        weights: [N, K], of their outputs.
        n_pairs: how many of ``experts`` are not -1.
    """

    x: Tensor
    experts: Tensor
    weights: Tensor
    n_pairs: int


class Dispatch(Protocol):
    """Sends tokens to their experts and brings the results back. Both directions are differentiable, and collective:
    a rank without tokens calls them as well. Nothing is kept between them but the plan, which is frozen: a forward pass
    may run twice before backward, and backward in two halves."""

    def dispatch(self, x: Tensor, experts: Tensor, weights: Tensor) -> tuple[Rows, Any]:
        """Send tokens out.

        Args:
            x: [T, H].
            experts: int64 [T, K], numbers among all experts.
            weights: [T, K].

        Returns:
            What reaches this rank, and what ``combine`` must know: a ``DispatchPlan`` or the like.
        """

    def combine(self, y: Tensor, plan: Any) -> Tensor:
        """Bring back ``y`` [N, H], what the experts here made of the rows, and sum up each token's: [T, H]."""


class NoDispatch:
    """The dispatch of a rank that holds all experts: tokens stay where they are."""

    def dispatch(self, x: Tensor, experts: Tensor, weights: Tensor) -> tuple[Rows, None]:
        return Rows(x, experts, weights, experts.numel()), None

    def combine(self, y: Tensor, plan: None) -> Tensor:
        return y
