"""Grouped experts with low-rank adapters, differentiated by autograd.

The weights of the experts are frozen, so autograd saves neither them nor the rows that their gradients would need.

Legend: N rows, K experts per row, M pairs of a row and one of its experts, E experts, H hidden size, F intermediate,
I inputs and O outputs of a product, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from archon_core.contracts.moe import ClampedGate
from archon_moe.kernels.activations import Gating
from archon_moe.kernels.choice import ROW_BYTES
from archon_moe.kernels.order import ExpertOrder, order_by_expert

Product = Callable[[Tensor, Tensor], Tensor]
"""[M, I] and [E, O, I] to [M, O]: each row times the matrix of its expert."""


def adapted_experts(
    x_NH: Tensor,
    experts_NK: Tensor,
    weights_NK: Tensor,
    n_pairs: int,
    matrices: Mapping[str, Tensor],
    factors: Mapping[str, tuple[Tensor, Tensor]],
    scale: float,
    *,
    hidden_act: str,
    grouped: bool,
    biases: tuple[Tensor, Tensor, Tensor] | None = None,
    clamp: ClampedGate | None = None,
) -> Tensor:
    """As ``kernels.operation.grouped_experts``, with ``scale * B A x`` added to the adapted projections.

    Args:
        x_NH: rows, in the dtype of the experts' weights.
        experts_NK: int, -1 for an expert of another rank.
        weights_NK: in at least fp32.
        n_pairs: M, how many of ``experts_NK`` are not -1.
        matrices: ``gate_proj`` and ``up_proj`` [E, F, H], ``down_proj`` [E, H, F].
        factors: projection -> ``A`` [E, r, I] and ``B`` [E, O, r].
        scale: factor of the products of ``factors``.
        hidden_act: activation, by its ``transformers`` name.
        grouped: use ``grouped_mm`` instead of a loop over experts.
        biases: gate and up biases [E, F], and down biases [E, H]; ``None`` without.
        clamp: the product that replaces ``act(gate(x)) * up(x)``.
    """
    gating = Gating(hidden_act, clamp)
    order = order_by_expert(experts_NK, matrices["gate_proj"].shape[0], n_pairs)
    rows_M = order.pairs // experts_NK.shape[1]
    product = _grouped_product(order) if grouped and n_pairs else _looped_product(order)

    def project(x_MI: Tensor, name: str) -> Tensor:
        y_MO = product(x_MI, matrices[name])
        if name not in factors:
            return y_MO
        down, up = factors[name]
        return y_MO + scale * product(product(x_MI, down), up)

    x_MH = x_NH.index_select(0, rows_M)
    weights_M1 = weights_NK.reshape(-1)[order.pairs][:, None]
    gate_MF, up_MF = project(x_MH, "gate_proj"), project(x_MH, "up_proj")
    if biases is not None:
        of_pairs = (bias.index_select(0, experts_NK.reshape(-1)[order.pairs].long()) for bias in biases)
        gate_bias_MF, up_bias_MF, down_bias_MH = of_pairs
        gate_MF, up_MF = gate_MF + gate_bias_MF, up_MF + up_bias_MF
    # As in the other kernels, weights multiply the hidden activations.
    h_MF = (gating.activate(gate_MF) * gating.factor(up_MF) * weights_M1).to(x_NH.dtype)
    y_MH = project(h_MF, "down_proj")
    if biases is not None:
        y_MH = y_MH + (weights_M1 * down_bias_MH).to(y_MH.dtype)
    # In at least fp32: in bfloat16 every expert would add a rounding.
    kind = torch.promote_types(x_NH.dtype, torch.float32)
    return x_NH.new_zeros(x_NH.shape, dtype=kind).index_add(0, rows_M, y_MH.to(kind)).to(x_NH.dtype)


def _looped_product(order: ExpertOrder) -> Product:
    counts = order.counts.tolist()

    def product(x_MI: Tensor, matrices_EOI: Tensor) -> Tensor:
        parts = zip(x_MI.split(counts), matrices_EOI.unbind(0), strict=True)
        return torch.cat([functional.linear(x, matrix) for x, matrix in parts])

    return product


def _grouped_product(order: ExpertOrder) -> Product:
    # Imported here: torch builds without grouped_mm can still run the loop.
    from archon_moe.kernels.grouped_mm import leaves_empty_sums

    ends_E = order.counts.cumsum(0, dtype=torch.int32)
    is_empty_E11 = (order.counts == 0)[:, None, None]

    def product(x_MI: Tensor, matrices_EOI: Tensor) -> Tensor:
        if matrices_EOI.requires_grad and leaves_empty_sums(x_MI.device):
            # Backward then replaces the gradients of experts without pairs by zeros.
            matrices_EOI = torch.where(is_empty_E11, matrices_EOI.detach(), matrices_EOI)
        # Ranks are small and any number; zeros fill them up to rows that grouped_mm accepts.
        unit = ROW_BYTES // matrices_EOI.element_size()
        more_inputs, more_outputs = -matrices_EOI.shape[2] % unit, -matrices_EOI.shape[1] % unit
        if more_inputs:
            x_MI = functional.pad(x_MI, (0, more_inputs))
        if more_inputs or more_outputs:
            matrices_EOI = functional.pad(matrices_EOI, (0, more_inputs, 0, more_outputs))
        y_MO = functional.grouped_mm(x_MI, matrices_EOI.mT, offs=ends_E)
        return y_MO[:, : y_MO.shape[1] - more_outputs].contiguous() if more_outputs else y_MO

    return product
