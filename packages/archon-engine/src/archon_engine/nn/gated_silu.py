"""SiLU of one tensor times another as an autograd function, tile by tile.

Autograd would save the activation beside both arguments, a seventh of what a dense block saves. Here forward saves its
arguments alone, and backward computes the activation again. That takes no more time, because tiles stay in the cache:
main memory is read or written eight times, forward and backward together, instead of fourteen.

Legend: N rows, F features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from archon_engine.nn.tiles import is_one_tile, tiles_of


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up`` for two tensors [..., F]."""
    return _GatedSiLU.apply(gate, up)


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    if is_one_tile(gate):
        return functional.silu(gate).mul_(up)
    out = gate.new_empty(gate.shape)
    gate_NF, up_NF, out_NF = (x.reshape(-1, x.shape[-1]) for x in (gate, up, out))
    for tile in tiles_of(gate_NF):
        torch.mul(functional.silu(gate_NF[tile]), up_NF[tile], out=out_NF[tile])
    return out


class _GatedSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        grad_NF, gate_NF, up_NF = (x.reshape(-1, x.shape[-1]) for x in (grad, gate, up))
        needs_gate, needs_up = ctx.needs_input_grad
        grad_gate_NF = gate.new_empty(gate_NF.shape) if needs_gate else None
        grad_up_NF = up.new_empty(up_NF.shape) if needs_up else None
        silu_backward = torch.ops.aten.silu_backward.grad_input
        for tile in tiles_of(gate_NF):
            if grad_up_NF is not None:
                torch.mul(grad_NF[tile], functional.silu(gate_NF[tile]), out=grad_up_NF[tile])
            if grad_gate_NF is not None:
                silu_backward(grad_NF[tile] * up_NF[tile], gate_NF[tile], grad_input=grad_gate_NF[tile])
        return tuple(None if x is None else x.view(gate.shape) for x in (grad_gate_NF, grad_up_NF))
