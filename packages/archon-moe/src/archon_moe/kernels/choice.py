"""Chooses the implementation of grouped experts by device, dtype and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from archon_core.errors import ConfigError

OPTION = "moe_grouped_gemm"

ROW_BYTES = 16
"""``grouped_mm`` requires the strides of its matrices to be multiples of this many bytes (torch 2.11 to 2.13)."""


@dataclass(frozen=True)
class Implementation:
    """The chosen implementation.

    Attributes:
        name: name of its module in this package.
        reason: why it was chosen, for the decisions table.
    """

    name: Literal["loop", "grouped_mm"]
    reason: str


def choose_implementation(
    device: torch.device | str, dtype: torch.dtype, requested: bool | None = None, sizes: Sequence[int] = ()
) -> Implementation:
    """Choose the implementation on ``device`` in ``dtype``.

    Args:
        device: where the experts are computed.
        dtype: of their weights.
        requested: the option ``moe_grouped_gemm``.
        sizes: the hidden size, and this rank's part of an expert's intermediate size.

    Raises:
        ConfigError: ``grouped_mm`` is requested but not available.
    """
    device = torch.device(device)
    missing = _why_no_grouped_mm(device, dtype, sizes)
    if requested and missing:
        raise ConfigError(
            f"{OPTION}: found true, but {missing}; allowed are false, and null for an available implementation"
        )
    if requested is not None:
        return Implementation("grouped_mm" if requested else "loop", f"{OPTION} is set")
    if missing:
        return Implementation("loop", missing)
    if device.type == "cpu":
        # torch's CPU kernel is a loop over copied rows too (measured by tooling/bench/moe.py).
        return Implementation("loop", "on a CPU the loop is faster than grouped_mm, which loops over copied rows")
    return Implementation("grouped_mm", "on CUDA computing all experts at once is faster than one after the other")


def _why_no_grouped_mm(device: torch.device, dtype: torch.dtype, sizes: Sequence[int]) -> str:
    if not hasattr(functional, "grouped_mm"):
        return f"torch {torch.__version__} has no torch.nn.functional.grouped_mm"
    if device.type not in ("cpu", "cuda"):
        return f"grouped_mm has not been tested on {device.type}"
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
