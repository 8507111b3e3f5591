"""Grouped experts in a few grouped matrix products (``torch.nn.functional.grouped_mm``), without waiting for the
device.

The backward pass is written by hand: the derivative of ``grouped_mm`` requires contiguous gradients, and autograd would
save more tensors.

Legend: N rows, K experts per row, M pairs of a row and one of its experts, E experts, H hidden size, F intermediate.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, grouped_mm

from archon_moe.kernels.activations import Gating
from archon_moe.kernels.weights import ExpertWeights


def forward(
    x_NH: Tensor,
    weights_M: Tensor,
    pairs_M: Tensor,
    ends_E: Tensor,
    n_choices: int,
    own: ExpertWeights,
    gating: Gating,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs [N, H], and the gate and up projections [M, F] that backward needs.

    Args:
        x_NH: rows.
        weights_M: weight of each pair, in at least fp32.
        pairs_M: int64, indices into the flattened choices [N * K], sorted by expert.
        ends_E: int32, end of each expert's slice of M; on the device, where ``grouped_mm`` reads it.
        n_choices: K.
        own: weights of the experts.
        gating: the product of their projections.
    """
    # No row reaches this rank: CUDA's kernels do not accept products without rows. The clone is there because outputs
    # of a custom operation must not share memory.
    if not pairs_M.shape[0]:
        nothing = x_NH.new_empty(0, own.gate.shape[1])
        return torch.zeros_like(x_NH), nothing, nothing.clone()
    x_MH = x_NH.index_select(0, pairs_M // n_choices)
    gate_MF = grouped_mm(x_MH, own.gate.mT, offs=ends_E)
    up_MF = grouped_mm(x_MH, own.up.mT, offs=ends_E)
    if own.biases is not None:
        experts_M = _experts_of_pairs(ends_E, pairs_M)
        gate_MF += own.gate_bias.index_select(0, experts_M)
        up_MF += own.up_bias.index_select(0, experts_M)
    # Weighting the hidden activations instead of the outputs gives the same sum, and backward needs no outputs.
    h_MF = (gating.activate(gate_MF) * gating.factor(up_MF)).mul_(weights_M[:, None])
    y_MH = grouped_mm(h_MF, own.down.mT, offs=ends_E)
    if own.biases is not None:
        y_MH += own.down_bias.index_select(0, experts_M).mul_(weights_M[:, None])
    return sum_of_pairs(y_MH, pairs_M, x_NH.shape[0], n_choices), gate_MF, up_MF


def backward(
    grad_NH: Tensor,
    x_NH: Tensor,
    weights_M: Tensor,
    pairs_M: Tensor,
    ends_E: Tensor,
    n_choices: int,
    own: ExpertWeights,
    gate_MF: Tensor,
    up_MF: Tensor,
    gating: Gating,
    *,
    inputs: bool,
    experts: bool,
) -> tuple[Tensor | None, Tensor | None, ExpertWeights | None]:
    """Gradients of x [N, H] and weights [M] if ``inputs``, and of the weights of experts if ``experts``.

    The halves of a split backward pass ask for one of the two each. ``h_MF`` and ``dh_MF`` are multiplied in place, so
    the order of the lines matters.
    """
    if not pairs_M.shape[0]:
        of_none = ExpertWeights(*(None if w is None else torch.zeros_like(w) for w in own)) if experts else None
        return (torch.zeros_like(x_NH), torch.zeros_like(weights_M), of_none) if inputs else (None, None, of_none)
    rows_M = pairs_M // n_choices
    grad_MH = grad_NH.index_select(0, rows_M)
    activated_MF, factor_MF = gating.activate(gate_MF), gating.factor(up_MF)
    dh_MF = grouped_mm(grad_MH, own.down, offs=ends_E)
    h_MF = activated_MF * factor_MF
    dx_NH = dweights_M = of_experts = None
    if inputs:
        # From dh and h before either is multiplied by the weights.
        dweights_M = torch.linalg.vecdot(dh_MF.to(weights_M.dtype), h_MF.to(weights_M.dtype))
        if own.biases is not None:
            bias_MH = own.down_bias.index_select(0, _experts_of_pairs(ends_E, pairs_M))
            dweights_M += torch.linalg.vecdot(grad_MH.to(weights_M.dtype), bias_MH.to(weights_M.dtype))
    if experts:
        ddown_EHF = sum_of_products(grad_MH, h_MF.mul_(weights_M[:, None]), ends_E)
    dh_MF.mul_(weights_M[:, None])
    dup_MF = gating.factor_backward_(activated_MF * dh_MF, up_MF)
    dgate_MF = gating.activate_backward(dh_MF.mul_(factor_MF), gate_MF)
    if experts:
        x_MH = x_NH.index_select(0, rows_M)
        of_experts = ExpertWeights(
            sum_of_products(dgate_MF, x_MH, ends_E), sum_of_products(dup_MF, x_MH, ends_E), ddown_EHF
        )
        if own.biases is not None:
            weighted_MH = grad_MH * weights_M[:, None]
            values = {"gate_bias": dgate_MF, "up_bias": dup_MF, "down_bias": weighted_MH}
            sums = {name: sum_by_expert(value, ends_E).to(x_NH.dtype) for name, value in values.items()}
            of_experts = of_experts._replace(**sums)
    if inputs:
        dx_MH = grouped_mm(dgate_MF, own.gate, offs=ends_E).add_(grouped_mm(dup_MF, own.up, offs=ends_E))
        dx_NH = sum_of_pairs(dx_MH, pairs_M, x_NH.shape[0], n_choices)
    return dx_NH, dweights_M, of_experts


def sum_of_products(a_MA: Tensor, b_MB: Tensor, ends_E: Tensor) -> Tensor:
    """The sum of ``outer(a, b)`` over each expert's pairs: [E, A, B], 0 for an expert without pairs."""
    sums_EAB = grouped_mm(a_MA.t(), b_MB, offs=ends_E)
    if not leaves_empty_sums(a_MA.device):
        return sums_EAB
    is_empty_E = ends_E.diff(prepend=ends_E.new_zeros(1)) == 0
    return sums_EAB.masked_fill_(is_empty_E[:, None, None], 0)


@cache
def leaves_empty_sums(device: torch.device) -> bool:
    """Whether ``grouped_mm`` on this device may leave memory as it was where a sum has no terms.

    On Blackwell it does, on Hopper it writes zeros (pytorch/pytorch issue 172439, torch 2.11 to 2.13). Remove when it
    writes them everywhere: they take a pass over the gradients.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 10


def _experts_of_pairs(ends_E: Tensor, pairs_M: Tensor) -> Tensor:
    """int64 [M], the expert of each pair."""
    places_M = torch.arange(pairs_M.shape[0], device=ends_E.device, dtype=ends_E.dtype)
    return torch.searchsorted(ends_E, places_M, right=True)


def sum_by_expert(values_MF: Tensor, ends_E: Tensor) -> Tensor:
    """Sum the values [M, F] of each expert's pairs, in a fixed order, as ``sum_of_pairs`` does: [E, F]."""
    places_M = torch.arange(values_MF.shape[0], device=ends_E.device)
    starts_E = torch.cat([ends_E.new_zeros(1), ends_E[:-1]]).long()
    return embedding_bag(places_M, values_MF, starts_E, mode="sum")


def sum_of_pairs(values_MH: Tensor, pairs_M: Tensor, n_rows: int, n_choices: int) -> Tensor:
    """Sum the values [M, H] of each row's pairs: [N, H].

    ``embedding_bag`` adds in a fixed order; ``index_add`` on CUDA uses atomics, whose order, and so the rounding,
    varies.
    """
    n_pairs = values_MH.shape[0]
    if n_pairs == 0:
        return values_MH.new_zeros(n_rows, values_MH.shape[1])
    # places: the inverse of pairs_M. Missing choices point at the extra row n_pairs, which padding_idx leaves out.
    places = torch.full((n_rows * n_choices,), n_pairs, device=pairs_M.device, dtype=torch.int64)
    places[pairs_M] = torch.arange(n_pairs, device=pairs_M.device)
    complete = n_pairs == places.numel()
    values = values_MH if complete else torch.cat([values_MH, values_MH.new_zeros(1, values_MH.shape[1])])
    padding = None if complete else n_pairs
    return embedding_bag(places.view(n_rows, n_choices), values, mode="sum", padding_idx=padding)
