"""Large results on a CPU in huge pages, where Linux gives them on request.

Memory that was never touched costs a page fault per 4 KiB, which for the gradients of many experts comes to a quarter
of a training step. In pages of 2 MiB it is hardly anything. torch asks for them only if the environment variable
``THP_MEM_ALLOC_ENABLE`` says so, and then for every tensor.
"""

from __future__ import annotations

import contextlib
import math
import mmap

import torch
from torch import Tensor

SMALLEST = 4 * 2**20
"""Bytes from which huge pages are asked for; below, memory is reused by the allocator and not fresh."""


def fresh(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised tensor of the device and type of ``like``."""
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or size < SMALLEST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return like.new_empty(shape)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has rules of its own
    with contextlib.suppress(OSError):  # a kernel without them: small pages give the same numbers
        memory.madvise(mmap.MADV_HUGEPAGE)
    # The tensor keeps the mapping; it goes with the tensor.
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)
