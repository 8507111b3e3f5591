"""Writes whole Hugging Face tensors into a sharded model, one at a time, and reads them back.

Nothing is collective: each process writes the boxes that it holds.

Inference servers receive weights in this way, in any order, without a folder in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from archon_core.errors import WeightsError
from archon_core.models.box import Link
from archon_core.models.weight_map import ResolvedMap
from archon_engine.parallel.shards import local_part


class ReceivedWeights:
    """Access by Hugging Face name to the weights that this process holds.

    Args:
        weights: the map, resolved for the whole model.
        named: our name -> parameter or buffer of this process, sharded or not.
    """

    def __init__(self, weights: ResolvedMap, named: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self._named = named

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Hugging Face name -> shape, for every tensor of the model."""
        return self._weights.hf_shapes

    @torch.no_grad()
    def put(self, name: str, values: Tensor) -> None:
        """Copy a whole tensor into the boxes of this process, casting to their dtype.

        Raises:
            WeightsError: the model has no such tensor, or its shape differs.
        """
        self._check(name, tuple(values.shape))
        for link, part in self._held(name):
            part.copy_(link.as_ours(values[link.hf_box.slices]))

    @torch.no_grad()
    def take_over(self, name: str, other: ReceivedWeights) -> None:
        """Copy a tensor from another copy of the same model with the same sharding."""
        self._check(name, tuple(other.shapes.get(name, ())))
        for (_, part), (_, source) in zip(self._held(name), other._held(name), strict=True):
            part.copy_(source)

    @torch.no_grad()
    def whole(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """A copy of a tensor in ``dtype`` on the CPU; ``None`` if this process holds only a part of it."""
        self._check(name, self.shapes.get(name))
        result = torch.empty(self.shapes[name], dtype=dtype)
        filled = 0
        for link, part in self._held(name):
            link.as_ours(result[link.hf_box.slices]).copy_(part)
            filled += link.hf_box.numel
        return result if filled == result.numel() else None

    def _held(self, name: str) -> Iterator[tuple[Link, Tensor]]:
        """The boxes of a tensor that this process holds, with their storage."""
        for ours in dict.fromkeys(link.ours for link in self._weights.links_of_hf[name]):
            if ours in self._named:
                storage, box = local_part(self._named[ours])
                for link in self._weights.links_in(ours, box) if box.numel else ():
                    if link.hf == name:
                        yield link, storage[link.our_box.relative_to(box.start).slices]

    def _check(self, name: str, shape: tuple[int, ...] | None) -> None:
        if name not in self.shapes:
            raise WeightsError(f"weights: found tensor {name!r}, which the model does not have; publish the same model")
        if tuple(self.shapes[name]) != shape:
            raise WeightsError(
                f"weights: found {name!r} of shape {shape}; the model has {tuple(self.shapes[name])}; publish the same "
                "model"
            )
