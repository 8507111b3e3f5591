"""Losses that keep experts equally loaded and router logits small, added by their gradients.

Shares of tokens per expert have no gradient, so sums of counts over ranks are all that is exchanged.

Legend: T real tokens of this rank, E experts, K experts per token, S sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.moe import MoESettings
from archon_core.contracts.packed import Auxiliary
from archon_engine import compat
from archon_moe.kernels.order import count_each
from archon_moe.local_tokens import LocalTokens
from archon_moe.options import MoEOptions
from archon_moe.router import Routing


@dataclass(frozen=True)
class Losses:
    """This rank's part of a block's losses, without their coefficients; ``None`` for one that is off.

    Attributes:
        balance: sums to about 1 over all tokens of the batch when experts are equally loaded.
        z: sums to the mean over all tokens.
    """

    balance: Tensor | None
    z: Tensor | None


def losses_of(
    routing: Routing, own: LocalTokens, auxiliary: Auxiliary, settings: MoESettings, options: MoEOptions
) -> Losses:
    """What the options ask for. Collective where sequences are cut, and for ``global_batch``."""
    balance = z = None
    if options.moe_aux_loss == "sequence" and options.moe_aux_loss_coef:
        balance = sequence_loss(routing, own, auxiliary.n_sequences, settings)
    elif options.moe_aux_loss == "global_batch" and options.moe_aux_loss_coef:
        balance = global_batch_loss(routing, auxiliary, settings)
    if options.moe_z_loss_coef:
        z = z_loss(routing.logits, auxiliary.n_tokens)
    return Losses(balance, z)


def sequence_loss(routing: Routing, own: LocalTokens, n_sequences: int, settings: MoESettings) -> Tensor:
    """``1/S sum_s sum_e f_se P_se``: f the share of a sequence's choices that went to e, times E, and P the mean of its
    scores (DeepSeek-V3, arXiv:2412.19437, equations 17 to 20).

    Args:
        n_sequences: of the whole batch.
    """
    sequence_T = own.sequence_of()
    flat = (sequence_T[:, None] * settings.n_experts + routing.experts).reshape(-1)
    counts = count_each(flat, own.n_sequences * settings.n_experts)
    counts_SE = own.sum_over_sharers(counts).view(-1, settings.n_experts)
    # Each sequence has K choices per token, so that counts know its length.
    lengths_S = counts_SE.sum(1, keepdim=True).clamp(min=1) / settings.top_k
    scores = shares(routing.scores, settings)
    factors_SE = counts_SE.to(scores.dtype) / lengths_S.to(scores.dtype).square()
    factors_SE *= settings.n_experts / (settings.top_k * n_sequences)
    return (factors_SE[sequence_T] * scores).sum()


def global_batch_loss(routing: Routing, auxiliary: Auxiliary, settings: MoESettings) -> Tensor:
    """``sum_e f_e P_e`` with f of the tokens of a micro-batch on all ranks (arXiv:2501.11873); micro-batches count by
    their tokens. f, and so the loss, depends on how the batch is split into them."""
    counts_E = count_each(routing.experts, settings.n_experts)
    if auxiliary.group is not None:
        counts_E = compat.all_reduce(counts_E, auxiliary.group)
    scores = shares(routing.scores, settings)
    f_E = counts_E.to(scores.dtype) * (settings.n_experts / counts_E.sum().clamp(min=1).to(scores.dtype))
    return (scores.sum(0) * f_E).sum() / auxiliary.n_tokens


def z_loss(logits: Tensor, n_tokens: int) -> Tensor:
    """The mean squared log-sum-exp of logits [T, E] (ST-MoE, arXiv:2202.08906, equation 5).

    Args:
        n_tokens: of the whole batch.
    """
    upcast = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return upcast.logsumexp(-1).square().sum() / n_tokens


def shares(scores: Tensor, settings: MoESettings) -> Tensor:
    """Scores [T, E] that sum to 1 per token."""
    return scores if settings.score == "softmax" else scores / scores.sum(-1, keepdim=True).clamp(min=1e-20)


def with_gradient_of(weights: Tensor, losses: Losses, options: MoEOptions) -> Tensor:
    """``weights`` [T, K] unchanged; whoever back-propagates through them adds the gradients of the losses."""
    parts = [
        coefficient * loss
        for coefficient, loss in (
            (options.moe_aux_loss_coef, losses.balance),
            (options.moe_z_loss_coef, losses.z),
        )
        if loss is not None
    ]
    return _AddGradient.apply(weights, sum(parts)) if parts else weights


class _AddGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.one = torch.ones_like(loss)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, ctx.one


@torch.no_grad()
def update_choice_bias(bias: Tensor, counts: Tensor, rate: float) -> None:
    """Raise the bias [E] of experts with less than the mean load, and lower that of others, by ``rate``, in place
    (arXiv:2408.15664, algorithm 1).

    Args:
        counts: [E], tokens of each expert in the whole step.
    """
    load = counts.to(bias.device, torch.float64)
    bias.add_((load.mean() - load).sign().to(bias.dtype), alpha=rate)
