"""A mixture-of-experts block: router, dispatch, experts, combine, and a shared expert.

Legend: T tokens that this rank holds between the regions of tensor parallelism, H hidden size, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from archon_core.contracts.moe import MoESettings
from archon_core.contracts.packed import PackedSequences
from archon_engine.nn.linear import Linear
from archon_engine.nn.swiglu import SwiGLU
from archon_engine.nn.tensor_parallel import TensorParallel
from archon_moe.balancing import attach_losses, balancing_losses
from archon_moe.dispatch.interface import Dispatch, NoDispatch, Rows
from archon_moe.experts import GroupedExperts
from archon_moe.load import load_report
from archon_moe.local_tokens import LocalTokens
from archon_moe.options import MoEOptions
from archon_moe.replay import experts_to_record, recorded_experts
from archon_moe.router import Router, Routing


@dataclass(frozen=True)
class _Sent:
    """Tokens on their way to their experts.

    Attributes:
        rows, plan: from ``Dispatch.dispatch``.
        n_padding: number of tokens behind the real ones that were not sent.
    """

    rows: Rows | Callable[[], Rows]
    plan: Any
    n_padding: int


class MoEBlock(nn.Module):
    """``sum_k w_k expert_k(x) + sigmoid(gate(x)) * shared(x)``; ``archon_core.contracts.moe`` names the parameters.

    Attributes:
        router: scores and chooses experts.
        experts: the routed experts that this rank holds.
        shared: the shared expert; ``None`` without.
        shared_gate: the gate of its output; ``None`` without.
        layer: index of the layer in the whole model.
        parallel: the tensor ranks over which tokens are sharded; set by the engine.
        dispatch: sends tokens to the ranks of their experts.
    """

    # Left out of compiled graphs: shapes inside depend on how many tokens each rank receives, and would recompile with
    # every batch. The router's scores and the shared expert stay outside of these methods, so they are compiled.
    eager_methods = ("_send", "_receive")

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
        """Map ``x`` [T, H] to [T, H]. For padding, the routed experts contribute 0.

        Args:
            x: hidden states.
            packed: the pack that the tokens belong to.

        Raises:
            DataError: ``packed.experts`` was recorded with another model.
        """
        logits, scores = self.router(x)
        sent = self._send(x, logits, scores, packed)
        if self.shared is None:
            return self._receive(sent)
        if isinstance(self.dispatch, NoDispatch):
            # The shared expert last: a checkpoint then does not repeat its last product.
            return self._receive(sent) + self._shared_output(x)
        shared = self._shared_output(x)  # while the tokens are on their way
        return self._receive(sent) + shared

    def _send(self, x: Tensor, logits: Tensor, scores: Tensor, packed: PackedSequences) -> _Sent:
        """Choose the experts of all tokens and start to send them there."""
        local = LocalTokens.of(packed, self.parallel, x.shape[0])
        # Slice only where there is padding: the backward pass of a slice writes a zero-filled tensor of full size.
        if local.n_real < x.shape[0]:
            real, logits, scores = x[: local.n_real], logits[: local.n_real], scores[: local.n_real]
        else:
            real = x
        routing = self.router.route(logits, scores, recorded_experts(local, self.layer, self.settings))
        weights = self._report(routing, local, x.shape[0])

        # A rank without real tokens goes on with 0 rows: dispatch and combine are collective, and its experts may
        # receive tokens of other ranks.
        rows, plan = self.dispatch.dispatch(real, routing.experts, weights)
        return _Sent(rows, plan, n_padding=x.shape[0] - local.n_real)

    def _receive(self, sent: _Sent) -> Tensor:
        """The weighted sum [T, H] of the outputs of each token's experts."""
        rows = sent.rows() if callable(sent.rows) else sent.rows
        y = self.experts(rows.x, rows.experts, rows.weights, rows.n_pairs)
        y = self.dispatch.combine(y, sent.plan)
        return functional.pad(y, (0, 0, 0, sent.n_padding)) if sent.n_padding else y

    def _report(self, routing: Routing, local: LocalTokens, n_tokens: int) -> Tensor:
        """Report choices and loads, and return the routing weights with the balancing losses attached."""
        packed, auxiliary = local.packed, local.packed.auxiliary
        if packed.record_experts is not None:
            packed.record_experts(self.layer, experts_to_record(routing.experts, n_tokens))
        if auxiliary is None:
            return routing.weights
        counted = routing.of_sequences(local)
        losses = balancing_losses(counted, local, auxiliary, self.settings, self.options)
        # A recomputed forward pass reports again; the report of a layer replaces its earlier one, so nothing counts
        # twice.
        auxiliary.report(str(self.layer), load_report(counted, losses, self.settings))
        return attach_losses(routing.weights, losses, self.options)

    def _shared_output(self, x: Tensor) -> Tensor:
        assert self.shared is not None
        shared = self.shared(x)
        return shared if self.shared_gate is None else torch.sigmoid(self.shared_gate(x)) * shared
