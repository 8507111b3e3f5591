"""The experts of a block: gated feed-forward blocks with stacked weights.

Legend: N rows, K experts per row, E experts of this rank, H hidden size, F their intermediate size on this rank.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from archon_core.contracts.moe import MoESettings
from archon_engine.nn.swiglu import activation
from archon_moe.kernels.choice import Implementation, choose_implementation
from archon_moe.kernels.low_rank import adapted_experts
from archon_moe.kernels.operation import grouped_experts
from archon_moe.low_rank import LowRankExperts, local_shard, low_rank_of


class GroupedExperts(nn.Module):
    """``sum_k w_k down_k(act(gate_k(x)) * up_k(x))``, or another product of gate and up (``MoESettings.clamped_gate``).

    Parameters are plain tensors, or DTensors whose local shards are computed with.

    Attributes:
        gate_proj: [E, F, H].
        up_proj: [E, F, H].
        down_proj: [E, H, F].
        gate_bias: [E, F]; the biases are ``None`` for experts without.
        up_bias: [E, F].
        down_bias: [E, H]; expert tensor ranks hold, and add, a part of H each, since outputs are summed over them.
        down_bias_start: first element of this rank's part of ``down_bias``.
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
        for name, size in (("gate_bias", F), ("up_bias", F), ("down_bias", H)):
            self.register_parameter(name, nn.Parameter(torch.empty(E, size)) if settings.expert_bias else None)
        self.down_bias_start = 0
        self.clamped_gate = settings.clamped_gate
        self.hidden_act = settings.hidden_act
        activation(settings.hidden_act)  # raises ModelError for an unknown activation
        self.grouped_gemm = grouped_gemm
        self.whole: tuple[Tensor, ...] | None = None
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
        gate, up, down, *biases = self.whole or (local_shard(part) for part in self.parameters(recurse=False))
        options = {
            "hidden_act": self.hidden_act,
            "grouped": self._implementation_for(gate).name == "grouped_mm",
            "biases": self._biases(*biases) if biases else None,
            "clamp": self.clamped_gate,
        }
        if self.lora is not None and (factors := self.lora.factors):
            matrices = {"gate_proj": gate, "up_proj": up, "down_proj": down}
            return adapted_experts(
                x.to(gate.dtype), experts, weights, n_pairs, matrices, factors, self.lora.scale, **options
            )
        return grouped_experts(x.to(gate.dtype), experts, weights, n_pairs, gate, up, down, **options)

    def _biases(self, gate: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The biases that this rank adds: of the down projection its part, and zeros elsewhere."""
        missing = self.down_proj.shape[1] - down.shape[1]
        start = self.down_bias_start if missing else 0
        return gate, up, functional.pad(down, (start, missing - start)) if missing else down

    def _implementation_for(self, gate: Tensor) -> Implementation:
        return choose_implementation(gate.device, gate.dtype, self.grouped_gemm, gate.shape[1:])

    def extra_repr(self) -> str:
        E, F, H = self.gate_proj.shape
        act = self.clamped_gate or self.hidden_act
        return f"{E} x ({H} -> {F} -> {H}), {act}{'' if self.gate_bias is None else ', bias'}"
