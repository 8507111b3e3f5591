"""The interface of a dispatch: it sends tokens to the ranks of their experts and brings the outputs back.

Legend: T tokens of this rank, N rows that reach it, K experts per token, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class DispatchPlan:
    """What ``combine`` needs from an exchange of rows by ``dispatch``.

    Attributes:
        n_tokens: T.
        token_of_row: int64 [rows sent], for each row the index of its token, in the order of sending.
        sent: number of rows sent to each rank.
        received: number of rows received from each rank.
    """

    n_tokens: int
    token_of_row: Tensor
    sent: tuple[int, ...]
    received: tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """The rows that a rank's experts compute.

    Attributes:
        x: [N, H], hidden states.
        experts: int [N, K], indices among the experts of this rank; -1 for an expert of another rank.
        weights: [N, K], factors of the experts' outputs; not read where ``experts`` is -1.
        n_pairs: number of entries of ``experts`` that are not -1, known on the host.
    """

    x: Tensor
    experts: Tensor
    weights: Tensor
    n_pairs: int


class Dispatch(Protocol):
    """Sends tokens to their experts and brings the outputs back.

    Both directions are differentiable and collective: a rank without tokens calls them too. Keep no state between them
    but the plan, and do not change the plan: a recomputed block runs forward twice before its backward pass, and a
    split backward pass runs in two parts.
    """

    def dispatch(self, x: Tensor, experts: Tensor, weights: Tensor) -> tuple[Rows | Callable[[], Rows], Any]:
        """Send tokens to their experts.

        Args:
            x: [T, H].
            experts: int64 [T, K], indices among all experts of the block.
            weights: [T, K], in at least fp32.

        Returns:
            The rows that reach this rank, or a function that waits for them and returns them, which the block calls
            once, after its shared expert; and the argument ``plan`` of ``combine``, such as a ``DispatchPlan``.
        """

    def combine(self, y: Tensor, plan: Any) -> Tensor:
        """Return the outputs ``y`` [N, H] of local experts to the ranks of their tokens; sum them per token: [T, H]."""


class NoDispatch:
    """The dispatch of a rank that holds all experts: tokens stay where they are."""

    def dispatch(self, x: Tensor, experts: Tensor, weights: Tensor) -> tuple[Rows, None]:
        return Rows(x, experts, weights, experts.numel()), None

    def combine(self, y: Tensor, plan: None) -> Tensor:
        return y
