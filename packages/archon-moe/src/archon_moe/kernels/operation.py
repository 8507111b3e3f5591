"""Grouped experts as one differentiable operation.

The forward pass is registered with ``torch.library``, so that selective checkpointing and profilers see one operation.
Selective checkpointing could not save the products inside: they write into reused buffers.

Legend: N rows, K experts per row, M pairs of a row and one of its experts, E experts, H hidden size, F intermediate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.moe import ClampedGate
from archon_engine import compat
from archon_moe.kernels import loop
from archon_moe.kernels.activations import Gating
from archon_moe.kernels.order import order_by_expert
from archon_moe.kernels.weights import ExpertWeights


def grouped_experts(
    x_NH: Tensor,
    experts_NK: Tensor,
    weights_NK: Tensor,
    n_pairs: int,
    gate_EFH: Tensor,
    up_EFH: Tensor,
    down_EHF: Tensor,
    *,
    hidden_act: str,
    grouped: bool,
    biases: tuple[Tensor, Tensor, Tensor] | None = None,
    clamp: ClampedGate | None = None,
) -> Tensor:
    """The weighted sum of experts' outputs: ``sum_k w_k down(act(gate(x)) * up(x))`` [N, H].

    Args:
        x_NH: rows, in the dtype of the experts' weights.
        experts_NK: int, -1 for an expert of another rank.
        weights_NK: in at least fp32.
        n_pairs: M, how many of ``experts_NK`` are not -1.
        gate_EFH: gate weights.
        up_EFH: up weights.
        down_EHF: down weights.
        hidden_act: activation, by its ``transformers`` name.
        grouped: use ``grouped_mm`` instead of the loop.
        biases: gate and up biases [E, F], and down biases [E, H]; ``None`` without.
        clamp: the product that replaces ``act(gate(x)) * up(x)``.
    """
    order = order_by_expert(experts_NK, gate_EFH.shape[0], n_pairs)
    # Views, because compat.wanted_gradients cannot tell for a leaf whether its gradient is wanted.
    given = (tensor.view_as(tensor) for tensor in (x_NH, weights_NK, gate_EFH, up_EFH, down_EHF, *(biases or ())))
    x_NH, weights_NK, *own = given
    return _Experts.apply(
        x_NH, weights_NK, *ExpertWeights(*own), order.pairs, order.counts, Gating(hidden_act, clamp), grouped
    )


@torch.library.custom_op("archon_moe::grouped_experts", mutates_args=())
def _forward(
    x_NH: Tensor,
    weights_NK: Tensor,
    gate_EFH: Tensor,
    up_EFH: Tensor,
    down_EHF: Tensor,
    pairs_M: Tensor,
    counts_E: Tensor,
    hidden_act: str,
    grouped: bool,
    gate_bias_EF: Tensor | None = None,
    up_bias_EF: Tensor | None = None,
    down_bias_EH: Tensor | None = None,
    clamp: list[float] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    # Arguments of an operation are tensors and numbers; ``clamp`` holds alpha and limit.
    weights_M, n_choices = weights_NK.reshape(-1)[pairs_M], weights_NK.shape[1]
    own = ExpertWeights(gate_EFH, up_EFH, down_EHF, gate_bias_EF, up_bias_EF, down_bias_EH)
    experts = own, Gating(hidden_act, ClampedGate(*clamp) if clamp else None)
    if grouped:
        # Imported here: torch builds without grouped_mm can still run the loop.
        from archon_moe.kernels import grouped_mm

        return grouped_mm.forward(x_NH, weights_M, pairs_M, _ends(counts_E), n_choices, *experts)
    return loop.forward(x_NH, weights_M, pairs_M // n_choices, counts_E.tolist(), *experts)


@_forward.register_fake
def _(
    x_NH: Tensor,
    weights_NK: Tensor,
    gate_EFH: Tensor,
    up_EFH: Tensor,
    down_EHF: Tensor,
    pairs_M: Tensor,
    counts_E: Tensor,
    hidden_act: str,
    grouped: bool,
    gate_bias_EF: Tensor | None = None,
    up_bias_EF: Tensor | None = None,
    down_bias_EH: Tensor | None = None,
    clamp: list[float] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    gate_MF = x_NH.new_empty(pairs_M.shape[0], gate_EFH.shape[1])
    return torch.empty_like(x_NH), gate_MF, torch.empty_like(gate_MF)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NH: Tensor,
        weights_NK: Tensor,
        gate_EFH: Tensor,
        up_EFH: Tensor,
        down_EHF: Tensor,
        gate_bias_EF: Tensor | None,
        up_bias_EF: Tensor | None,
        down_bias_EH: Tensor | None,
        pairs_M: Tensor,
        counts_E: Tensor,
        gating: Gating,
        grouped: bool,
    ) -> Tensor:
        given = x_NH, weights_NK, gate_EFH, up_EFH, down_EHF, pairs_M, counts_E
        biases = gate_bias_EF, up_bias_EF, down_bias_EH
        clamp = None if gating.clamp is None else [gating.clamp.alpha, gating.clamp.limit]
        y_NH, gate_MF, up_MF = _forward(*given, gating.hidden_act, grouped, *biases, clamp)
        ctx.save_for_backward(*given, gate_MF, up_MF, *biases)
        ctx.gating, ctx.grouped = gating, grouped
        return y_NH

    @staticmethod
    def backward(ctx: Any, grad_NH: Tensor) -> tuple[Tensor | None, ...]:
        x_NH, weights_NK, *matrices, pairs_M, counts_E, gate_MF, up_MF, gate_bias, up_bias, down_bias = (
            ctx.saved_tensors
        )
        n_choices = weights_NK.shape[1]
        weights_M = weights_NK.reshape(-1)[pairs_M]
        experts = ExpertWeights(*matrices, gate_bias, up_bias, down_bias), gate_MF, up_MF, ctx.gating
        # A split backward pass calls this twice: once for the gradients of inputs, once for those of experts. Not
        # ctx.needs_input_grad, which is true for all of them in both calls, so that everything would be computed twice.
        is_wanted = compat.wanted_gradients(ctx)
        # Of tensors only: without biases, pairs and counts follow the matrices, and no gradient of theirs is wanted.
        wanted = {"inputs": any(is_wanted[:2]), "experts": any(is_wanted[2:8])}
        if ctx.grouped:
            from archon_moe.kernels import grouped_mm

            given = grad_NH, x_NH, weights_M, pairs_M, _ends(counts_E), n_choices
            dx_NH, dweights_M, of_experts = grouped_mm.backward(*given, *experts, **wanted)
        else:
            given = grad_NH, x_NH, weights_M, pairs_M // n_choices, counts_E.tolist()
            dx_NH, dweights_M, of_experts = loop.backward(*given, *experts, **wanted)
        dweights_NK = None
        if dweights_M is not None:
            # A choice that is -1 has no pair; its gradient is 0.
            dweights_NK = dweights_M.new_zeros(weights_NK.numel()).index_copy_(0, pairs_M, dweights_M)
            dweights_NK = dweights_NK.view_as(weights_NK)
        return dx_NH, dweights_NK, *(of_experts or [None] * 6), None, None, None, None


def _ends(counts_E: Tensor) -> Tensor:
    return counts_E.cumsum(0, dtype=torch.int32)
