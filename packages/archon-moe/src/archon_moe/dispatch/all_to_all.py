"""Dispatch by uneven all-to-all over all ranks that share the experts, for any ``ep`` and ``etp``.

A token goes once to every rank that holds a part of one of its experts, whatever the number of its experts there. That
rank weighs and sums their outputs, each from its part of the intermediate size, and sends one row back; the token's
rank sums what comes. So ``etp`` needs no collectives of its own, and only rows that somebody needs are sent.

Legend: T tokens of this rank, R rows that it sends, N rows that it receives, K experts per token, H hidden size,
P places along ``ep``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from archon_core.contracts.moe import ExpertParallel
from archon_engine import compat
from archon_moe.dispatch.interface import DispatchPlan, Rows
from archon_moe.kernels.order import count_each


class AllToAllDispatch:
    """Exchanges rows with the other ranks of ``place.group``.

    Args:
        place: this rank's.
        n_experts: of the block, on all ranks.
    """

    def __init__(self, place: ExpertParallel, n_experts: int) -> None:
        self._place = place
        self._n_local = n_experts // place.ep

    def dispatch(self, x: Tensor, experts: Tensor, weights: Tensor) -> tuple[Rows, DispatchPlan]:
        place, group = self._place, self._place.group
        homes_TK = experts // self._n_local
        goes_TP = torch.zeros(x.shape[0], place.ep, dtype=torch.bool, device=x.device).scatter_(1, homes_TK, True)
        pairs_P = count_each(homes_TK, place.ep)
        counts_P2 = torch.stack([goes_TP.sum(0), pairs_P], 1)
        ours_R2 = counts_P2.repeat_interleave(place.etp, 0)
        theirs_R2 = compat.all_to_all(ours_R2, group)
        # The one time that the host waits for the device: sizes of what is exchanged are decided here.
        (sent, _), (received, pairs) = torch.stack([ours_R2, theirs_R2]).mT.tolist()

        goes_RT = goes_TP.mT.repeat_interleave(place.etp, 0)
        places_R, token_R = torch.nonzero_static(goes_RT, size=sum(sent)).unbind(1)
        local_RK = experts[token_R] - (places_R // place.etp * self._n_local)[:, None]
        is_there_RK = (local_RK >= 0) & (local_RK < self._n_local)
        numbers_RK = torch.where(is_there_RK, local_RK, -1).to(torch.int32)
        weights_RK = torch.where(is_there_RK, weights.index_select(0, token_R), 0.0)

        rows = Rows(
            x=compat.all_to_all_with_grad(x.index_select(0, token_R), group, sent, received),
            experts=compat.all_to_all(numbers_RK, group, sent, received),
            weights=compat.all_to_all_with_grad(weights_RK, group, sent, received),
            n_pairs=sum(pairs),
        )
        return rows, DispatchPlan(x.shape[0], token_R, tuple(sent), tuple(received))

    def combine(self, y: Tensor, plan: DispatchPlan) -> Tensor:
        rows_RH = compat.all_to_all_with_grad(y, self._place.group, plan.received, plan.sent)
        kind = torch.promote_types(y.dtype, torch.float32)
        sums = torch.zeros(plan.n_tokens, y.shape[1], dtype=kind, device=y.device)
        return sums.index_add(0, plan.token_of_row, rows_RH.to(kind)).to(y.dtype)
