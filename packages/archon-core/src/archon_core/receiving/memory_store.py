"""A store of two sets of tensors in host memory: received weights beside those in use, and a switch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from archon_core.errors import ServerError


class MemoryStore:
    """Implements ``contracts.weight_transport.WeightStore``. After the first update its memory is warm and reused.

    Args:
        tensors: the weights in use; the store overwrites them in its second update.
    """

    reads_back = True

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        self._in_use: dict[str, Tensor] = dict(tensors or {})
        self._spare: dict[str, Tensor] = {}
        self._received: set[str] = set()

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The weights in use."""
        return self._in_use

    def put(self, name: str, values: Tensor) -> None:
        """Copy a tensor into the spare set."""
        spare = self._spare.get(name)
        if spare is None or spare.shape != values.shape or spare.dtype != values.dtype:
            self._spare[name] = spare = torch.empty_like(values, device="cpu")
        spare.copy_(values)
        self._received.add(name)

    def keep(self, name: str) -> None:
        """Copy a tensor from the set in use. Raises ServerError if it has none of this name."""
        if name not in self._in_use:
            raise ServerError(f"tensor {name!r}: found none in the weights in use; send all tensors")
        self.put(name, self._in_use[name])

    def stored(self, name: str) -> Tensor | None:
        """The received tensor."""
        return self._spare[name] if name in self._received else None

    def commit(self, version: int) -> None:
        """Exchange the two sets."""
        received = {name: self._spare[name] for name in self._spare if name in self._received}
        self._in_use, self._spare = received, self._in_use
        self._received = set()

    def drop(self) -> None:
        """Forget what was received; its memory is kept for the next update."""
        self._received = set()
