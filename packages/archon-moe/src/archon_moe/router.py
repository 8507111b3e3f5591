"""The router: scores all experts for every token, chooses K of them, and weights their outputs.

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
from archon_moe.local_tokens import LocalTokens

SMALLEST_SUM = 1e-20
"""Added to the sum of the chosen scores before dividing by it, as in DeepSeek-V3: all of them can be 0, sigmoid scores
as well as softmax scores of replayed experts. Too small to change any other sum."""


@dataclass(frozen=True)
class Routing:
    """The routing decision of every token.

    Attributes:
        logits: [T, E], in the dtype of the router.
        scores: [T, E], in at least fp32.
        experts: int64 [T, K], chosen experts, in no particular order.
        weights: [T, K], factors of the experts' outputs, in the dtype of the scores.
    """

    logits: Tensor
    scores: Tensor
    experts: Tensor
    weights: Tensor

    def of_sequences(self, local: LocalTokens) -> Routing:
        """The decisions once for every sequence that has the token, for loads and losses."""
        return Routing(*local.of_sequences(self.logits, self.scores, self.experts, self.weights))


class Router(nn.Module):
    """Scores all experts for every token and chooses some.

    Attributes:
        weight: [E, H].
        bias: [E], of the logits; ``None`` for models without.
        choice_bias: [E], added to the scores for the choice alone, in at least fp32; a buffer, since no gradient
            changes it. ``None`` for models without.
        lora: an adapter of ``weight``; ``None`` without.
    """

    adds_adapter = True  # to the logits: a hook on the result would come behind the scores

    def __init__(self, settings: MoESettings) -> None:
        super().__init__()
        self.settings = settings
        self.weight = nn.Parameter(torch.empty(settings.n_experts, settings.hidden_size))
        bias = nn.Parameter(torch.empty(settings.n_experts)) if settings.router_bias else None
        self.register_parameter("bias", bias)
        self.register_buffer("choice_bias", torch.zeros(settings.n_experts) if settings.choice_bias else None)
        self.lora: nn.Module | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and scores, each [T, E], of ``x`` [T, H]."""
        settings, weight = self.settings, local_weight(self.weight)
        bias = None if self.bias is None else local_weight(self.bias)
        adapted = self.lora(x) if self.lora is not None and self.lora.enabled else None
        if settings.router_dtype == "fp32":
            kind = torch.promote_types(x.dtype, torch.float32)
            x, weight, bias = x.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
        logits = functional.linear(x, weight, bias)
        if adapted is not None:
            logits = logits + adapted.to(logits.dtype)
        return logits, router_scores(logits, settings)

    def route(self, logits: Tensor, scores: Tensor, recorded: Tensor | None = None) -> Routing:
        """Choose experts and weights.

        Args:
            logits: [T, E].
            scores: [T, E].
            recorded: int [T, K], experts that replace the router's choice (routing replay); a row with -1 keeps it.
        """
        experts = choose_experts(scores.detach(), self.settings, self.choice_bias)
        if recorded is not None:
            recorded = recorded.to(experts.dtype)
            experts = torch.where((recorded >= 0).all(-1, keepdim=True), recorded, experts)
        return Routing(logits, scores, experts, expert_weights(scores, experts, self.settings))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Keep the choice bias in at least fp32 when the module is cast: bfloat16 would round updates of 1e-3 away."""
        bias = self.choice_bias
        super()._apply(fn, recurse)
        if bias is not None:
            cast = self.choice_bias
            # From the values before the cast, which has already rounded its own; the meta device has no values to keep.
            kind = torch.promote_types(cast.dtype, torch.float32)
            self.choice_bias = cast.to(kind) if bias.is_meta or cast.is_meta else bias.to(cast.device, kind)
        return self

    def extra_repr(self) -> str:
        s = self.settings
        return f"{s.hidden_size} -> {s.top_k} of {s.n_experts}, {s.score}"


def router_scores(logits: Tensor, settings: MoESettings) -> Tensor:
    """Scores [T, E] of ``logits`` [T, E], in at least fp32."""
    upcast = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return upcast.sigmoid() if settings.score == "sigmoid" else upcast.softmax(-1)


def choose_experts(scores: Tensor, settings: MoESettings, bias: Tensor | None = None) -> Tensor:
    """Choose experts for every token: int64 [T, K].

    Group-limited choice follows DeepSeek-V3 (arXiv:2412.19437): a group ranks by the sum of its two best scores.

    Args:
        scores: [T, E].
        bias: [E], added to the scores first.
    """
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if settings.top_k_groups < settings.n_groups:
        grouped_TGe = scores.unflatten(-1, (settings.n_groups, -1))
        best_TG = grouped_TGe.topk(min(2, grouped_TGe.shape[-1]), dim=-1).values.sum(-1)
        # -inf, not 0: a biased score can be negative and would lose to a masked one.
        eligible_TG = torch.zeros_like(best_TG, dtype=torch.bool)
        eligible_TG.scatter_(1, best_TG.topk(settings.top_k_groups, dim=-1, sorted=False).indices, True)
        scores = grouped_TGe.masked_fill(~eligible_TG[..., None], float("-inf")).flatten(-2)
    return scores.topk(settings.top_k, dim=-1, sorted=False).indices


def expert_weights(scores: Tensor, experts: Tensor, settings: MoESettings) -> Tensor:
    """Weights [T, K] of the chosen experts' outputs, from the scores [T, E] without the choice bias."""
    weights = scores.gather(-1, experts)
    if settings.norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + SMALLEST_SUM)
    return weights if settings.scaling == 1.0 else weights * settings.scaling
