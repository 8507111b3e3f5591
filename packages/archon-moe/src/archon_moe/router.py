"""The router: which experts a token goes to, and with what weights.

Legend: T tokens, E experts, K experts per token, G groups of experts, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from archon_core.contracts.moe import MoESettings
from archon_engine.nn.tensor_parallel import local_weight

SMALLEST_SUM = 1e-20
"""Keeps sigmoid scores that are all 0 from being divided by their sum; that of DeepSeek-V3."""


@dataclass(frozen=True)
class Routing:
    """Where tokens go.

    Attributes:
        logits: [T, E], in the router's type.
        scores: [T, E], in at least fp32.
        experts: int64 [T, K], in no particular order.
        weights: [T, K], of the experts' outputs; of the scores' type.
    """

    logits: Tensor
    scores: Tensor
    experts: Tensor
    weights: Tensor


class Router(nn.Module):
    """Scores all experts for every token and chooses some.

    Attributes:
        weight: [E, H].
        choice_bias: [E], added to scores for choosing alone; a buffer, since no gradient changes it. ``None`` without.
    """

    def __init__(self, settings: MoESettings) -> None:
        super().__init__()
        self.settings = settings
        self.weight = nn.Parameter(torch.empty(settings.n_experts, settings.hidden_size))
        self.register_buffer("choice_bias", torch.zeros(settings.n_experts) if settings.choice_bias else None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and scores, each [T, E], of ``x`` [T, H]."""
        settings, weight = self.settings, local_weight(self.weight)
        if settings.router_dtype == "fp32":
            kind = torch.promote_types(x.dtype, torch.float32)
            x, weight = x.to(kind), weight.to(kind)
        logits = functional.linear(x, weight)
        return logits, score(logits, settings)

    def route(self, logits: Tensor, scores: Tensor, recorded: Tensor | None = None) -> Routing:
        """Where tokens of these logits and scores go.

        Args:
            recorded: int [T, K], experts to take instead of the router's own choice; -1 in a row for no such.
        """
        experts = choose(scores.detach(), self.settings, self.choice_bias)
        if recorded is not None:
            recorded = recorded.to(experts.dtype)
            experts = torch.where((recorded >= 0).all(-1, keepdim=True), recorded, experts)
        return Routing(logits, scores, experts, weigh(scores, experts, self.settings))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Keep the choice bias in at least fp32 when the module is cast: rates are far below a step of bfloat16."""
        bias = self.choice_bias
        super()._apply(fn, recurse)
        if bias is not None:
            cast = self.choice_bias
            kind = torch.promote_types(cast.dtype, torch.float32)
            self.choice_bias = cast.to(kind) if bias.is_meta or cast.is_meta else bias.to(cast.device, kind)
        return self

    def extra_repr(self) -> str:
        s = self.settings
        return f"{s.hidden_size} -> {s.top_k} of {s.n_experts}, {s.score}"


def score(logits: Tensor, settings: MoESettings) -> Tensor:
    """Scores [T, E] of ``logits``, in at least fp32."""
    upcast = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return upcast.sigmoid() if settings.score == "sigmoid" else upcast.softmax(-1)


def choose(scores: Tensor, settings: MoESettings, bias: Tensor | None = None) -> Tensor:
    """The experts of every token, int64 [T, K].

    Group-limited choice is DeepSeek-V3's (arXiv:2412.19437): groups are ranked by the sum of their two best.

    Args:
        scores: [T, E].
        bias: [E], added to them first.
    """
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if settings.top_k_groups < settings.n_groups:
        grouped_TGe = scores.unflatten(-1, (settings.n_groups, -1))
        best_TG = grouped_TGe.topk(min(2, grouped_TGe.shape[-1]), dim=-1).values.sum(-1)
        eligible_TG = torch.zeros_like(best_TG, dtype=torch.bool)
        eligible_TG.scatter_(1, best_TG.topk(settings.top_k_groups, dim=-1, sorted=False).indices, True)
        scores = grouped_TGe.masked_fill(~eligible_TG[..., None], float("-inf")).flatten(-2)
    return scores.topk(settings.top_k, dim=-1, sorted=False).indices


def weigh(scores: Tensor, experts: Tensor, settings: MoESettings) -> Tensor:
    """Weights [T, K] of the outputs of the chosen experts, from the scores [T, E] without bias."""
    weights = scores.gather(-1, experts)
    if settings.norm_topk_prob:
        total = weights.sum(-1, keepdim=True)
        weights = weights / (total + SMALLEST_SUM if settings.score == "sigmoid" else total)
    return weights if settings.scaling == 1.0 else weights * settings.scaling
