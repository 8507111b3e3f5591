"""A mixture-of-experts block.

Legend: T tokens that this rank holds between regions, H hidden size, K experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from archon_core.contracts.moe import MoESettings
from archon_core.contracts.packed import PackedSequences
from archon_engine.nn.linear import Linear
from archon_engine.nn.swiglu import SwiGLU
from archon_engine.nn.tensor_parallel import TensorParallel
from archon_moe.balancing import losses_of, with_gradient_of
from archon_moe.dispatch.interface import Dispatch, NoDispatch
from archon_moe.experts import GroupedExperts
from archon_moe.load import report_of
from archon_moe.local_tokens import LocalTokens
from archon_moe.options import MoEOptions
from archon_moe.replay import choice_record, recorded_choice
from archon_moe.router import Router, Routing


class MoEBlock(nn.Module):
    """``sum_k w_k expert_k(x) + sigmoid(gate(x)) * shared(x)``; see ``archon_core.contracts.moe`` for parameters.

    Attributes:
        router, experts, shared, shared_gate: its parts; the last two ``None`` where there are none.
        layer: its number in the whole model.
        parallel: the tensor ranks over which tokens are cut; core sets it.
        dispatch: how tokens reach their experts.
    """

    eager_methods = ("_experts_of",)

    def __init__(self, settings: MoESettings, layer: int, options: MoEOptions) -> None:
        super().__init__()
        H, shared = settings.hidden_size, settings.shared_intermediate_size
        self.settings = settings
        self.layer = layer
        self.options = options
        self.router = Router(settings)
        self.experts = GroupedExperts(settings, options.moe_grouped_gemm)
        self.shared = SwiGLU(H, shared, settings.hidden_act) if shared else None
        self.shared_gate = Linear(H, 1) if settings.shared_gate else None
        self.parallel: TensorParallel | None = None
        self.dispatch: Dispatch = NoDispatch()

    def forward(self, x: Tensor, packed: PackedSequences) -> Tensor:
        """[T, H] of ``x`` [T, H]. Experts' outputs are 0 for padding."""
        logits, scores = self.router(x)
        y = self._experts_of(x, logits, scores, packed)
        return y if self.shared is None else y + self._shared(x)

    def _experts_of(self, x: Tensor, logits: Tensor, scores: Tensor, packed: PackedSequences) -> Tensor:
        """What each token's experts make of it [T, H], weighed and summed."""
        own = LocalTokens.of(packed, self.parallel, x.shape[0])
        if own.n_real < x.shape[0]:
            real, logits, scores = x[: own.n_real], logits[: own.n_real], scores[: own.n_real]
        else:
            real = x
        routing = self.router.route(logits, scores, recorded_choice(own, self.layer, self.settings))
        weights = self._watched(routing, own, x.shape[0])

        rows, plan = self.dispatch.dispatch(real, routing.experts, weights)
        y = self.experts(rows.x, rows.experts, rows.weights, rows.n_pairs)
        y = self.dispatch.combine(y, plan)
        return functional.pad(y, (0, 0, 0, x.shape[0] - own.n_real)) if own.n_real < x.shape[0] else y

    def _watched(self, routing: Routing, own: LocalTokens, n_tokens: int) -> Tensor:
        """The routing's weights, with losses on them, after the block has reported."""
        packed, auxiliary = own.packed, own.packed.auxiliary
        if packed.record_experts is not None:
            packed.record_experts(self.layer, choice_record(routing.experts, n_tokens))
        if auxiliary is None:
            return routing.weights
        losses = losses_of(routing, own, auxiliary, self.settings, self.options)
        auxiliary.report(str(self.layer), report_of(routing, losses, self.settings))
        return with_gradient_of(routing.weights, losses, self.options)

    def _shared(self, x: Tensor) -> Tensor:
        assert self.shared is not None
        shared = self.shared(x)
        return shared if self.shared_gate is None else torch.sigmoid(self.shared_gate(x)) * shared
