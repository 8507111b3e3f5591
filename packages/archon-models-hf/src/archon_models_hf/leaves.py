"""transformers' layers as they are, reading their own weights through ``local_weight``.

A module keeps its class, as the base of another one: names, weights and arithmetic are those of transformers. Without
tensor parallelism weights are plain tensors and its own ``forward`` runs; with it, they are DTensors, and it runs with
this rank's parts in their places.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from archon_engine import compat
from archon_engine.nn.embedding import own_rows
from archon_engine.nn.tensor_parallel import TensorParallel, local_weight


def adapt_leaves(module: nn.Module) -> None:
    """Give every part of ``module`` that owns parameters a class that reads them locally, in place."""
    for part in list(module.modules()):
        if not any(True for _ in part.parameters(recurse=False)):
            continue
        if type(part) is nn.Linear:
            part.__class__ = Projection
            part.adds_bias, part.gathers_output, part.splits_input, part.parallel = True, False, False, None
        else:
            part.__class__ = _with_local_weights(type(part))


def adapt_embedding(embedding: nn.Embedding) -> None:
    """Let ``embedding``, of any class that looks rows up and scales them, hold part of a vocabulary, in place."""
    embedding.__class__ = _sharing_vocabulary(type(embedding))
    # Its rows are others on every tensor rank.
    embedding.padding, embedding.padding_idx = embedding.padding_idx, None
    embedding.parallel = None


class Projection(nn.Linear):
    """``nn.Linear`` that may hold part of its outputs or inputs.

    Attributes:
        adds_bias: false on tensor ranks whose output is summed with that of another one that adds the bias.
        gathers_output: whether every tensor rank gets all outputs: something looks at all of them.
        splits_input: whether inputs may be all that there are, of which this rank takes its part.
        parallel: the tensor ranks; ``None`` when all is here.
    """

    adds_bias: bool
    gathers_output: bool
    splits_input: bool
    parallel: TensorParallel | None

    def forward(self, x: Tensor) -> Tensor:
        """``x @ weight.T + bias``."""
        weight = local_weight(self.weight)
        bias = None if self.bias is None else local_weight(self.bias)
        if self.parallel is None:
            return functional.linear(x, weight, bias)
        if self.splits_input and x.shape[-1] != weight.shape[1]:
            x = x.chunk(self.parallel.size, -1)[self.parallel.rank]
        if bias is not None and not self.adds_bias:
            bias = bias * 0.0  # not None: its gradient, zero here, is summed over the ranks
        out = functional.linear(x, weight, bias)
        # Each rank continues with its own part: gradients of the others' parts are sums over ranks.
        return compat.all_gather_with_grad(out, out.ndim - 1, self.parallel.group) if self.gathers_output else out


@functools.cache
def _with_local_weights(cls: type[nn.Module]) -> type[nn.Module]:
    class Local(cls):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return _with_local_parameters(self, super().forward, *args, **kwargs)

    return _named_like(Local, cls)


@functools.cache
def _sharing_vocabulary(cls: type[nn.Embedding]) -> type[nn.Embedding]:
    class Shared(cls):  # type: ignore[misc, valid-type]
        def forward(self, ids: Tensor) -> Tensor:
            """Hidden states [T, hidden] of ``ids`` [T]; of this rank's tokens when they are sequence-sharded."""
            rows, is_elsewhere = ids, None
            if self.parallel is not None:
                rows, is_elsewhere = own_rows(ids, self.parallel.own_part(self.num_embeddings))
            hidden = _with_local_parameters(self, super().forward, rows)
            if self.padding is not None:
                # What torch does with padding_idx: that row is read and never trained.
                hidden = torch.where((ids == self.padding)[:, None], hidden.detach(), hidden)
            if self.parallel is None:
                return hidden
            return self.parallel.scatter_sum(hidden.masked_fill(is_elsewhere[:, None], 0.0))

    return _named_like(Shared, cls)


def _named_like(cls: type[nn.Module], original: type[nn.Module]) -> Any:
    cls.__name__, cls.__qualname__ = original.__name__, original.__qualname__
    cls.__doc__ = original.__doc__
    return cls


def _with_local_parameters(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    """Call ``forward`` with this rank's parts in the place of the module's DTensors."""
    parameters: dict[str, Any] = module._parameters
    sharded = {name: parameter for name, parameter in parameters.items() if isinstance(parameter, DTensor)}
    if not sharded:
        return forward(*args, **kwargs)
    try:
        for name, parameter in sharded.items():
            parameters[name] = local_weight(parameter)
        return forward(*args, **kwargs)
    finally:
        for name, parameter in sharded.items():
            parameters[name] = parameter
