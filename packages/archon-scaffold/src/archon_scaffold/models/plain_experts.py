"""Expert blocks without archon-moe, to compare the values of a written package with those of ``transformers``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from archon_core.contracts.moe import MoESettings
from archon_core.contracts.packed import PackedSequences
from archon_engine.nn.linear import Linear
from archon_engine.nn.swiglu import SwiGLU, activation


class PlainExperts:
    """Builds the blocks. Every expert computes every token, which is simple but wasteful."""

    def build(self, settings: MoESettings, layer: int) -> nn.Module:
        """See ``archon_core.contracts.moe.MoEBuilder``."""
        return _PlainBlock(settings)


class _PlainBlock(nn.Module):
    def __init__(self, settings: MoESettings) -> None:
        super().__init__()
        s = settings
        outward = (s.n_experts, s.intermediate_size, s.hidden_size)
        inward = (s.n_experts, s.hidden_size, s.intermediate_size)
        self.settings = s
        self.router = _holder(weight=(s.n_experts, s.hidden_size))
        if s.choice_bias:
            self.router.register_buffer("choice_bias", torch.zeros(s.n_experts))
        if s.router_bias:
            self.router.bias = nn.Parameter(torch.zeros(s.n_experts))
        self.experts = _holder(gate_proj=outward, up_proj=outward, down_proj=inward)
        if s.expert_bias:
            for name, size in (("gate_bias", outward[1]), ("up_bias", outward[1]), ("down_bias", s.hidden_size)):
                self.experts.register_parameter(name, nn.Parameter(torch.zeros(s.n_experts, size)))
        self.activation = activation(s.hidden_act)
        shared = s.shared_intermediate_size
        self.shared = SwiGLU(s.hidden_size, shared, s.hidden_act) if shared else None
        self.shared_gate = Linear(s.hidden_size, 1) if s.shared_gate else None

    def forward(self, x: Tensor, packed: PackedSequences) -> Tensor:
        s, experts, logits = self.settings, self.experts, x @ self.router.weight.T
        if s.router_bias:
            logits = logits + self.router.bias
        scores = logits.sigmoid() if s.score == "sigmoid" else logits.softmax(-1)
        chosen = self._chosen(scores)
        best = scores.gather(-1, chosen)
        if s.norm_topk_prob:
            best = best / best.sum(-1, keepdim=True)
        weights = x.new_zeros(x.shape[0], s.n_experts).scatter(-1, chosen, s.scaling * best)
        gate, up = (torch.einsum("th,efh->etf", x, proj) for proj in (experts.gate_proj, experts.up_proj))
        if s.expert_bias:
            gate, up = gate + experts.gate_bias[:, None], up + experts.up_bias[:, None]
        y = torch.einsum("etf,ehf,te->th", self._inner(gate, up), experts.down_proj, weights)
        if s.expert_bias:
            y = y + weights @ experts.down_bias
        if self.shared is None:
            return y
        return y + self.shared(x) * (1.0 if self.shared_gate is None else self.shared_gate(x).sigmoid())

    def _inner(self, gate: Tensor, up: Tensor) -> Tensor:
        clamp = self.settings.clamped_gate
        if clamp is None:
            return self.activation(gate) * up
        gate, up = gate.clamp(max=clamp.limit), up.clamp(-clamp.limit, clamp.limit)
        return gate * torch.sigmoid(clamp.alpha * gate) * (up + 1)

    def _chosen(self, scores: Tensor) -> Tensor:
        s = self.settings
        if s.choice_bias:
            scores = scores + self.router.choice_bias
        of_groups = scores.unflatten(-1, (s.n_groups, -1))
        best = of_groups.topk(min(2, of_groups.shape[-1])).values.sum(-1).topk(s.top_k_groups).indices
        allowed = torch.zeros(of_groups.shape[:-1], dtype=torch.bool).scatter(-1, best, True)
        return of_groups.masked_fill(~allowed[..., None], -torch.inf).flatten(-2).topk(s.top_k).indices


def _holder(**shapes: tuple[int, ...]) -> Any:
    module = nn.Module()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.empty(shape)))
    return module
