"""The experts of a block: gated feed-forward blocks with stacked weights.

Legend: N rows, K experts per row, E experts of this rank, H hidden size, F their intermediate size on this rank.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from archon_core.contracts.moe import MoESettings
from archon_engine.nn.swiglu import activation
from archon_moe.kernels.choice import Implementation, choose_implementation
from archon_moe.kernels.low_rank import adapted_experts
from archon_moe.kernels.operation import grouped_experts
from archon_moe.low_rank import LowRankExperts, local_shard, low_rank_of


class GroupedExperts(nn.Module):
    """``sum_k w_k down_k(act(gate_k(x)) * up_k(x))``.

    Parameters are plain tensors, or DTensors whose local shards are computed with.

    Attributes:
        gate_proj: [E, F, H].
        up_proj: [E, F, H].
        down_proj: [E, H, F].
        whole: the gathered weights of all experts, in that order, used in place of the parameters during generation;
            ``None`` otherwise.
        lora: low-rank adapters of the experts; ``None`` without.
    """

    def __init__(self, settings: MoESettings, grouped_gemm: bool | None = None) -> None:
        super().__init__()
        E, F, H = settings.n_experts, settings.intermediate_size, settings.hidden_size
        self.gate_proj = nn.Parameter(torch.empty(E, F, H))
        self.up_proj = nn.Parameter(torch.empty(E, F, H))
        self.down_proj = nn.Parameter(torch.empty(E, H, F))
        self.hidden_act = settings.hidden_act
        activation(settings.hidden_act)  # raises ModelError for an unknown activation
        self.grouped_gemm = grouped_gemm
        self.whole: tuple[Tensor, Tensor, Tensor] | None = None
        self.lora: LowRankExperts | None = None

    def add_low_rank(self, projections: Collection[str], rank: int, scale: float) -> None:
        """Add adapters; see ``archon_core.contracts.moe.AdaptableExperts``."""
        self.lora = low_rank_of(self, projections, rank, scale)

    @property
    def implementation(self) -> Implementation:
        """The implementation for the current device and dtype of the parameters."""
        return self._implementation_for(local_shard(self.gate_proj))

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor, n_pairs: int) -> Tensor:
        """The weighted sum [N, H] of the outputs of each row's local experts.

        Args:
            x: [N, H].
            experts: int [N, K], local indices; -1 for an expert of another rank.
            weights: [N, K], in at least fp32.
            n_pairs: how many of ``experts`` are not -1.
        """
        gate, up, down = self.whole or (local_shard(w) for w in (self.gate_proj, self.up_proj, self.down_proj))
        if self.lora is not None and (factors := self.lora.factors):
            return adapted_experts(
                x.to(gate.dtype),
                experts,
                weights,
                n_pairs,
                {"gate_proj": gate, "up_proj": up, "down_proj": down},
                factors,
                self.lora.scale,
                hidden_act=self.hidden_act,
                grouped=self._implementation_for(gate).name == "grouped_mm",
            )
        return grouped_experts(
            x.to(gate.dtype),
            experts,
            weights,
            n_pairs,
            gate,
            up,
            down,
            hidden_act=self.hidden_act,
            grouped=self._implementation_for(gate).name == "grouped_mm",
        )

    def _implementation_for(self, gate: Tensor) -> Implementation:
        return choose_implementation(gate.device, gate.dtype, self.grouped_gemm, gate.shape[1:])

    def extra_repr(self) -> str:
        E, F, H = self.gate_proj.shape
        return f"{E} x ({H} -> {F} -> {H}), {self.hidden_act}"
