"""The memory of all tensors of this process together, measured while operations run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

# Private (2.11 to 2.13).
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveStorages(TorchDispatchMode):
    """Records the largest sum of the sizes of all storages that operations have made or read and that are alive.

    Attributes:
        peak: that sum, in bytes.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._known: dict[int, StorageWeakRef] = {}
        self._add(module.parameters())
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self._add(tree_leaves((args, kwargs, out)))
        self.peak = max(self.peak, self.bytes)
        return out

    @property
    def bytes(self) -> int:
        """The sum now. FSDP2 resizes storages, so sizes are not remembered."""
        self._known = {key: reference for key, reference in self._known.items() if not reference.expired()}
        return sum(
            torch.UntypedStorage._new_with_weak_ptr(reference.cdata).size() for reference in self._known.values()
        )

    def _add(self, values: Any) -> None:
        for storage in _storages(values):
            self._known.setdefault(storage._cdata, StorageWeakRef(storage))


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    for value in values:
        if isinstance(value, Tensor):
            local = value._local_tensor if hasattr(value, "_local_tensor") else value
            yield local.untyped_storage()
