"""Linear weights in the memory order that suits decoding on CPUs.

``linear`` multiplies by the transposed weight. With few rows, the CPU's products take about a quarter less time if that
transpose is contiguous. A copy costs as much as ten to fifteen steps save, so short generations keep the weights as
they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from archon_engine.nn.head import LanguageModelHead
from archon_engine.nn.linear import Linear

LEAST_STEPS = 40
"""Fewest decode steps for which weights are copied."""

MOST_BYTES = 256 * 2**20
"""Memory for copies. Larger models keep the order of the remaining weights: reading those takes most of the time."""


@contextmanager
def transposed_weights(module: nn.Module, n_steps: int) -> Iterator[None]:
    """Store the linear weights of ``module`` by input feature inside the context, if decoding gains from it.

    Shapes, values and parameters stay the same; the original memory comes back at the end. Weights must not be changed
    inside the context. Sharded weights (``DTensor``) are left alone.

    Args:
        n_steps: decode steps of the longest sample.
    """
    originals: list[tuple[nn.Parameter, Tensor]] = []
    room = MOST_BYTES if n_steps >= LEAST_STEPS else 0
    try:
        for weight in _linear_weights(module):
            room -= weight.numel() * weight.element_size()
            if room < 0:
                break
            originals.append((weight, weight.data))
            weight.data = weight.data.T.contiguous().T
        yield
    finally:
        for weight, original in originals:
            weight.data = original


def _linear_weights(module: nn.Module) -> list[nn.Parameter]:
    """Plain weights on the CPU, each once, also where an embedding shares the head's."""
    found = (part.weight for part in module.modules() if isinstance(part, (Linear, nn.Linear, LanguageModelHead)))
    plain = (weight for weight in found if type(weight) is nn.Parameter and weight.device.type == "cpu")
    return list({id(weight): weight for weight in plain}.values())
