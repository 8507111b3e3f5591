"""Dispatch by one uneven all-to-all each way over all ranks that share the experts, for any ``ep`` and ``etp``.

A rank sends a token once to every rank that holds a part of one of its experts, however many of its experts that rank
holds. The receiving rank weights and sums their outputs, each computed from its part of the intermediate size, and
sends one row back; the token's rank sums the rows that return. Partial sums over ``etp`` and over experts are added in
the same place, so ``etp`` needs no further collective.

Legend: T tokens of this rank, R ranks of the group, S rows that this rank sends, N rows that it receives, K experts per
token, H hidden size, P places along ``ep`` (R = P * etp).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from archon_core.contracts.moe import ExpertParallel
from archon_engine import compat
from archon_moe.dispatch.interface import DispatchPlan, Rows
from archon_moe.kernels.order import count_each


class AllToAllDispatch:
    """Exchanges rows with the other ranks of ``place.group``.

    Args:
        place: this rank's place among the ranks that share the experts.
        n_experts: experts of the block, on all ranks.
    """

    def __init__(self, place: ExpertParallel, n_experts: int) -> None:
        self._place = place
        self._n_local = n_experts // place.ep

    def dispatch(self, x: Tensor, experts: Tensor, weights: Tensor) -> tuple[Callable[[], Rows], DispatchPlan]:
        place, group = self._place, self._place.group
        places_TK = experts // self._n_local
        # A set, not counts: a token with several experts at a place goes there once.
        is_sent_TP = torch.zeros(x.shape[0], place.ep, dtype=torch.bool, device=x.device).scatter_(1, places_TK, True)
        pairs_P = count_each(places_TK, place.ep)
        # Per rank, [rows, pairs]. Pairs travel along so that the receiver knows the sizes of its grouped products
        # without reading received expert indices back from the device.
        outgoing_R2 = torch.stack([is_sent_TP.sum(0), pairs_P], 1).repeat_interleave(place.etp, 0)
        incoming_R2 = compat.all_to_all(outgoing_R2, group)
        # The only point where the host waits for the device: the split sizes of an all-to-all are host integers. Both
        # directions in one copy, since each copy is a wait.
        (sent, _), (received, n_pairs) = torch.stack([outgoing_R2, incoming_R2]).mT.tolist()

        # Rank-major, as the split sizes require; etp is innermost in the group, so a place's ranks are neighbours.
        # nonzero_static with the known size does not wait for the device, as nonzero would.
        is_sent_RT = is_sent_TP.mT.repeat_interleave(place.etp, 0)
        rank_S, token_S = torch.nonzero_static(is_sent_RT, size=sum(sent)).unbind(1)
        local_SK = experts[token_S] - (rank_S // place.etp * self._n_local)[:, None]
        is_local_SK = (local_SK >= 0) & (local_SK < self._n_local)
        experts_SK = torch.where(is_local_SK, local_SK, -1).to(torch.int32)
        # index_select, whose backward is one index_add; that of indexing sorts the indices first.
        weights_SK = torch.where(is_local_SK, weights.index_select(0, token_S), 0.0)

        # Weights go with the rows, so that one row per token and rank comes back instead of one per expert. Autograd
        # runs the backward collectives in the reverse order of these calls on every rank; keep them unconditional, also
        # for ranks that send or receive nothing, or ranks deadlock.
        experts_NK = compat.start_all_to_all(experts_SK, group, sent, received)
        weights_NK = compat.start_all_to_all(weights_SK, group, sent, received)
        x_NH = compat.start_all_to_all(x.index_select(0, token_S), group, sent, received)

        def receive() -> Rows:
            return Rows(x=x_NH(), experts=experts_NK(), weights=weights_NK(), n_pairs=sum(n_pairs))

        return receive, DispatchPlan(x.shape[0], token_S, tuple(sent), tuple(received))

    def combine(self, y: Tensor, plan: DispatchPlan) -> Tensor:
        rows_SH = compat.all_to_all_with_grad(y, self._place.group, plan.received, plan.sent)
        return _SumOfRows.apply(rows_SH, plan)


class _SumOfRows(torch.autograd.Function):
    """The sum [T, H] of each token's rows [S, H].

    The derivative of torch's ``index_add`` saves the rows, of which it needs only the shape (2.11 to 2.13). This one
    saves no tensor: the plan's indices are the same in a recomputed pass, and a checkpoint, which recomputes up to the
    last saved tensor, then repeats neither the sum nor the exchange before it.
    """

    @staticmethod
    def forward(ctx: Any, rows_SH: Tensor, plan: DispatchPlan) -> Tensor:
        ctx.plan = plan
        # In at least fp32: in bfloat16 every rank that contributes to a token would add a rounding.
        kind = torch.promote_types(rows_SH.dtype, torch.float32)
        sums_TH = rows_SH.new_zeros(plan.n_tokens, rows_SH.shape[1], dtype=kind)
        return sums_TH.index_add_(0, plan.token_of_row, rows_SH.to(kind)).to(rows_SH.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Tensor, None]:
        return grad_TH.index_select(0, ctx.plan.token_of_row), None
