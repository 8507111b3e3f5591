"""The layers of an adapter: two projections beside one of the model, added by a forward hook.

A hook leaves the model's module as it is, so its name, its role in the parallel plan and its place in checkpoints do
not change, whichever library it is from.

Legend: T tokens, I inputs, O outputs of the adapted projection, r rank.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from archon_core.contracts.module import InitialValue
from archon_engine.nn.linear import Linear

ATTRIBUTE = "lora"
"""Name of the adapter in its projection."""


class Down(Linear):
    """``A``: [T, I] to [T, r]. It starts as ``torch.nn.Linear`` does, like PEFT's."""

    initial_values: ClassVar[dict[str, InitialValue]] = {"weight": "fan_in"}


class Up(Linear):
    """``B``: [T, r] to [T, O]. It starts at zero, so an untrained adapter changes nothing."""

    initial_values: ClassVar[dict[str, InitialValue]] = {"weight": "zeros"}


class LowRank(nn.Module):
    """``scale * B A x``.

    It needs no collective between tensor ranks. Beside a column projection every rank computes ``A x`` and its rows of
    ``B``; beside a row projection its columns of ``A``, whose partial sums pass through ``B`` into the region's sum.
    """

    def __init__(self, n_inputs: int, n_outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.down = Down(n_inputs, rank)
        self.up = Up(rank, n_outputs)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """[T, I] to [T, O]."""
        return self.scale * self.up(self.down(x))


def attach(projection: nn.Module, rank: int, scale: float) -> None:
    """Add an adapter to ``projection``, whose ``weight`` is [O, I], in place, with that weight's dtype and device."""
    n_outputs, n_inputs = projection.weight.shape
    with torch.device(projection.weight.device):
        adapter = LowRank(n_inputs, n_outputs, rank, scale)
    projection.add_module(ATTRIBUTE, adapter.to(projection.weight.dtype))
    projection.register_forward_hook(_add_product)


def _add_product(projection: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
    return output + projection.get_submodule(ATTRIBUTE)(arguments[0])
