"""Runs Megatron-Core on CPUs, which it does not support: replacements for the places where it names CUDA.

Seen with Megatron-Core 0.16.1, without Transformer Engine and Apex. Only the ranks of this oracle may use them, since
they replace functions of torch in the whole process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


class _CudaIsTheCpu(TorchFunctionMode):
    """Creates tensors on the CPU wherever Megatron asks for ``device="cuda"`` (causal masks, counts of tokens), and
    leaves them there at ``.cuda()`` (copies of tied heads)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = CPU
        return func(*args, **kwargs)


@contextmanager
def running_on_cpus() -> Iterator[None]:
    """Everything that Megatron-Core does in the block happens on the CPU."""
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
    from megatron.core.transformer.moe import moe_utils

    with ExitStack() as stack:
        stack.enter_context(_CudaIsTheCpu())
        # Passed as ``device`` to factories, embeddings and buffers of gradients.
        stack.enter_context(mock.patch.object(torch.cuda, "current_device", return_value=CPU))
        stack.enter_context(mock.patch.object(torch.cuda, "synchronize", return_value=None))
        # Dropout is off and no weight is drawn, so there are no states to switch.
        stack.enter_context(mock.patch.object(CudaRNGStatesTracker, "fork", return_value=nullcontext()))
        # Megatron reads this name everywhere, but defines it only where Transformer Engine is installed.
        stack.enter_context(mock.patch.object(moe_utils, "te_general_gemm", None, create=True))
        # Small functions are decorated with torch.compile, which would need a C++ compiler and minutes.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
