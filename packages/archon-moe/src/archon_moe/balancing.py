"""Load balancing: auxiliary losses on the router, and the update of choice biases.

The fraction f of tokens that an expert receives is piecewise constant, so it has no gradient; the gradient of a loss
flows through the mean scores P alone. Ranks therefore exchange only counts of tokens, and no gradients. A loss is not
returned: its gradient is added where the routing weights pass through backward (``attach_losses``).

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
    """This rank's terms of a block's losses, before their coefficients; ``None`` for a loss that is switched off.

    Attributes:
        balance: scalar; summed over all tokens of the batch it is about 1 when experts are equally loaded.
        z: scalar; summed over all tokens of the batch it is the mean of the squared log-sum-exp.
    """

    balance: Tensor | None
    z: Tensor | None


def balancing_losses(
    routing: Routing, local: LocalTokens, auxiliary: Auxiliary, settings: MoESettings, options: MoEOptions
) -> Losses:
    """The losses that the options enable. Collective: ``global_batch``, and ``sequence`` on sharded sequences."""
    balance = z = None
    if options.moe_aux_loss == "sequence" and options.moe_aux_loss_coef:
        balance = sequence_loss(routing, local, auxiliary.n_sequences, settings)
    elif options.moe_aux_loss == "global_batch" and options.moe_aux_loss_coef:
        balance = global_batch_loss(routing, auxiliary, settings)
    if options.moe_z_loss_coef:
        z = z_loss(routing.logits, auxiliary.n_tokens)
    return Losses(balance, z)


def sequence_loss(routing: Routing, local: LocalTokens, n_sequences: int, settings: MoESettings) -> Tensor:
    """``1/S sum_s sum_e f_se P_se`` (DeepSeek-V3, arXiv:2412.19437, equations 17 to 20): f_se is the fraction of
    sequence s's choices that went to expert e, times E, and P_se the mean of its normalised scores.

    Args:
        n_sequences: S of the whole batch, on all ranks.
    """
    sequence_T = local.sequence_of()
    flat = (sequence_T[:, None] * settings.n_experts + routing.experts).reshape(-1)
    counts = count_each(flat, local.n_sequences * settings.n_experts)
    counts_SE = local.sum_over_sequence_shards(counts).view(-1, settings.n_experts)
    # A sequence makes K choices per token, so its length over all its ranks follows from the summed counts.
    lengths_S = counts_SE.sum(1, keepdim=True).clamp(min=1) / settings.top_k
    scores = normalised_scores(routing.scores, settings)
    # One factor 1 / length belongs to f and one to P. P is never formed: it would need the scores of other ranks, whose
    # terms those ranks add themselves.
    factors_SE = counts_SE.to(scores.dtype) / lengths_S.to(scores.dtype).square()
    factors_SE *= settings.n_experts / (settings.top_k * n_sequences)
    return (factors_SE[sequence_T] * scores).sum()


def global_batch_loss(routing: Routing, auxiliary: Auxiliary, settings: MoESettings) -> Tensor:
    """``sum_e f_e P_e`` with f over the tokens of a micro-batch on all ranks (arXiv:2501.11873).

    Micro-batches are weighted by their tokens. The loss is not linear in f, so its value depends on how the batch is
    split into micro-batches.
    """
    counts_E = count_each(routing.experts, settings.n_experts)
    if auxiliary.group is not None:
        counts_E = compat.all_reduce(counts_E, auxiliary.group)
    scores = normalised_scores(routing.scores, settings)
    f_E = counts_E.to(scores.dtype) * (settings.n_experts / counts_E.sum().clamp(min=1).to(scores.dtype))
    return (scores.sum(0) * f_E).sum() / auxiliary.n_tokens


def z_loss(logits: Tensor, n_tokens: int) -> Tensor:
    """The mean squared log-sum-exp of logits [T, E] (ST-MoE, arXiv:2202.08906, equation 5).

    Args:
        n_tokens: tokens of the whole batch, on all ranks.
    """
    upcast = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return upcast.logsumexp(-1).square().sum() / n_tokens


def normalised_scores(scores: Tensor, settings: MoESettings) -> Tensor:
    """Scores [T, E] that sum to 1 over the experts of each token."""
    return scores if settings.score == "softmax" else scores / scores.sum(-1, keepdim=True).clamp(min=1e-20)


def attach_losses(weights: Tensor, losses: Losses, options: MoEOptions) -> Tensor:
    """``weights`` [T, K] unchanged; a backward pass through the result also adds the gradients of the losses."""
    terms = [
        coefficient * loss
        for coefficient, loss in (
            (options.moe_aux_loss_coef, losses.balance),
            (options.moe_z_loss_coef, losses.z),
        )
        if loss is not None
    ]
    return _AttachLoss.apply(weights, sum(terms)) if terms else weights


class _AttachLoss(torch.autograd.Function):
    """The identity on ``x`` that seeds ``loss`` with gradient 1, as if the loss were added to the objective.

    The loss is not added to the objective itself because a pipeline stage and a recomputed block return hidden states
    alone. Attached to the routing weights, it is differentiated wherever the block is: on any stage, in recomputed
    blocks and in split backward passes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.one = torch.ones_like(loss)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, ctx.one


@torch.no_grad()
def update_choice_bias(bias: Tensor, counts: Tensor, rate: float) -> None:
    """Raise the bias [E] of experts below the mean load by ``rate`` and lower that of experts above it, in place
    (arXiv:2408.15664, algorithm 1).

    Args:
        bias: [E], in at least fp32.
        counts: int64 [E], tokens of each expert in the whole step, on all ranks.
        rate: the step of the update.
    """
    # float64 represents counts exactly, so an expert at the mean does not move by rounding.
    load = counts.to(bias.device, torch.float64)
    bias.add_((load.mean() - load).sign().to(bias.dtype), alpha=rate)
