"""Which way experts are computed, by device and type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from archon_core.errors import ConfigError

OPTION = "moe_grouped_gemm"

ROW_BYTES = 16
"""What strides of ``grouped_mm``'s matrices must be multiples of (torch 2.11 to 2.13)."""


@dataclass(frozen=True)
class Implementation:
    """How experts are computed.

    Attributes:
        name: a module of this package.
        reason: why, as the end of a sentence.
    """

    name: Literal["loop", "grouped_mm"]
    reason: str


def choose_implementation(
    device: torch.device | str, dtype: torch.dtype, requested: bool | None = None, sizes: Sequence[int] = ()
) -> Implementation:
    """How experts are computed on ``device`` in ``dtype``.

    Args:
        requested: the option ``moe_grouped_gemm``.
        sizes: the hidden size, and the part of an expert's intermediate size that is here.

    Raises:
        ConfigError: grouped products were asked for where there are none.
    """
    device = torch.device(device)
    missing = _why_no_grouped_mm(device, dtype, sizes)
    if requested and missing:
        raise ConfigError(f"{OPTION}: found true, but {missing}; null chooses what there is")
    if requested is not None:
        return Implementation("grouped_mm" if requested else "loop", f"{OPTION} says so")
    if missing:
        return Implementation("loop", missing)
    if device.type == "cpu":
        # torch's kernel for CPUs is a loop as well, over rows that were copied (tooling/bench/moe.py).
        return Implementation("loop", "on a CPU it is faster than grouped_mm, which loops over copies")
    return Implementation("grouped_mm", "all experts at once are faster than one by one")


def _why_no_grouped_mm(device: torch.device, dtype: torch.dtype, sizes: Sequence[int]) -> str:
    if not hasattr(functional, "grouped_mm"):
        return f"torch {torch.__version__} has no torch.nn.functional.grouped_mm"
    if device.type not in ("cpu", "cuda"):
        return f"grouped_mm is not known to work on {device.type}"
    allowed = (torch.bfloat16, torch.float32) if device.type == "cpu" else (torch.bfloat16,)
    if dtype not in allowed:
        types = " and ".join(str(kind).removeprefix("torch.") for kind in allowed)
        return f"grouped_mm on {device.type} computes in {types}, not in {str(dtype).removeprefix('torch.')}"
    odd = [size for size in sizes if size * dtype.itemsize % ROW_BYTES]
    if odd:
        return (
            f"grouped_mm needs rows of a multiple of {ROW_BYTES} bytes, and a size of {odd[0]} makes rows of "
            f"{odd[0] * dtype.itemsize}"
        )
    return ""
