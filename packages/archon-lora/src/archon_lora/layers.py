"""The layers of an adapter: two projections beside one of the model, added by a forward hook.

A hook leaves the model's module as it is, so its name, its role in the parallel plan and its place in checkpoints do
not change, whichever library it is from. Adapters of experts are layers of the package that computes the experts
(``archon_core.contracts.moe.AdaptableExperts``).

Legend: T tokens, I inputs, O outputs of the adapted projection, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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

    Attributes:
        enabled: false leaves the product out.
    """

    def __init__(self, n_inputs: int, n_outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.down = Down(n_inputs, rank)
        self.up = Up(rank, n_outputs)
        self.scale = scale
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """[T, I] to [T, O]."""
        return self.scale * self.up(self.down(x))


def attach(projection: nn.Module, rank: int, scale: float) -> None:
    """Add an adapter to ``projection``, whose ``weight`` is [O, I], in place, with that weight's dtype and device.

    The projection's result gets the product added, unless its class has ``adds_adapter`` and adds it by itself.
    """
    n_outputs, n_inputs = projection.weight.shape
    with torch.device(projection.weight.device):
        adapter = LowRank(n_inputs, n_outputs, rank, scale)
    setattr(projection, ATTRIBUTE, adapter.to(projection.weight.dtype))
    if not getattr(projection, "adds_adapter", False):
        projection.register_forward_hook(_add_product)


@contextmanager
def switched_off(module: nn.Module) -> Iterator[None]:
    """Leave the products of all adapters in ``module`` out, those of experts too."""
    found = [adapter for name, adapter in module.named_modules() if name.rpartition(".")[2] == ATTRIBUTE]
    for adapter in found:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter in found:
            adapter.enabled = True


def _add_product(projection: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
    adapter = projection.get_submodule(ATTRIBUTE)
    return output + adapter(arguments[0]) if adapter.enabled else output
