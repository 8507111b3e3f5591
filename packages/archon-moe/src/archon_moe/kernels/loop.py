"""Grouped experts as a loop over experts, for every device and dtype; on a CPU the fastest implementation.

Consecutive experts form chunks whose rows fit the cache. The rows of a chunk are gathered, computed and added to the
result while they are cached, so neither copies of all rows nor all outputs are ever in memory; backward gathers the
rows again. Matrix products write into buffers that are allocated once, because on a CPU the first touch of fresh memory
costs as much as the arithmetic. Elementwise operations run on a whole chunk, which synchronises threads less often.

Legend: N rows, K experts per row, M pairs of a row and one of its experts, E experts, H hidden size, F intermediate.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Iterator

import torch
from torch import Tensor

from archon_moe.kernels.activations import Gating
from archon_moe.kernels.weights import ExpertWeights

CHUNK_ROWS = 1024
"""Most rows of a chunk, unless a single expert has more."""

HUGE_PAGES_FROM = 4 * 2**20
"""Bytes of a tensor from which huge pages are requested. The allocator reuses smaller blocks, which are not fresh."""


def forward(
    x_NH: Tensor,
    weights_M: Tensor,
    rows_M: Tensor,
    counts: list[int],
    own: ExpertWeights,
    gating: Gating,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs [N, H], and the gate and up projections [M, F] that backward needs.

    Args:
        x_NH: rows.
        weights_M: weight of each pair, in at least fp32.
        rows_M: int64, the row of each pair, sorted by expert.
        counts: pairs of each expert.
        own: weights of the experts.
        gating: the product of their projections.
    """
    (F, H), biases = own.gate.shape[1:], own.biases
    n_pairs, largest = sum(counts), _largest(counts)
    # Sums over experts in at least fp32: in bfloat16 every expert would add a rounding.
    y_NH = torch.zeros_like(x_NH, dtype=_sum_type(x_NH))
    gate_MF, up_MF = empty_in_huge_pages((n_pairs, F), x_NH), empty_in_huge_pages((n_pairs, F), x_NH)
    x_buffer, y_buffer = x_NH.new_empty(2, largest, H).unbind()
    h_buffer = x_NH.new_empty(largest, F)
    for part, experts in _chunks(counts):
        rows, n = rows_M[part], part.stop - part.start
        gate, up = gate_MF[part], up_MF[part]
        x = torch.index_select(x_NH, 0, rows, out=x_buffer[:n])
        for e, at in experts:
            torch.mm(x[at], own.gate[e].t(), out=gate[at])
            torch.mm(x[at], own.up[e].t(), out=up[at])
            if biases is not None:
                gate[at] += own.gate_bias[e]
                up[at] += own.up_bias[e]
        # Weighting the hidden activations instead of the outputs gives the same sum, and backward needs no outputs.
        h = torch.mul(gating.activate(gate), gating.factor(up), out=h_buffer[:n]).mul_(weights_M[part, None])
        y = y_buffer[:n]
        for e, at in experts:
            torch.mm(h[at], own.down[e].t(), out=y[at])
            if biases is not None:
                y[at].addr_(weights_M[part][at].to(y.dtype), own.down_bias[e])
        y_NH.index_add_(0, rows, y.to(y_NH.dtype))
    return y_NH.to(x_NH.dtype), gate_MF, up_MF


def backward(
    grad_NH: Tensor,
    x_NH: Tensor,
    weights_M: Tensor,
    rows_M: Tensor,
    counts: list[int],
    own: ExpertWeights,
    gate_MF: Tensor,
    up_MF: Tensor,
    gating: Gating,
    *,
    inputs: bool,
    experts: bool,
) -> tuple[Tensor | None, Tensor | None, ExpertWeights | None]:
    """Gradients of x [N, H] and weights [M] if ``inputs``, and of the weights of experts if ``experts``.

    The halves of a split backward pass ask for one of the two each. Buffers are reused within a chunk: ``dh``, ``h``
    and ``grad`` change their meaning from line to line, so the order of the lines matters.
    """
    (F, H), biases = own.gate.shape[1:], own.biases
    largest = _largest(counts)
    dx_NH = torch.zeros_like(x_NH, dtype=_sum_type(x_NH)) if inputs else None
    dweights_M = torch.zeros_like(weights_M) if inputs else None
    found = ExpertWeights(*(None if w is None else empty_in_huge_pages(w.shape, w) for w in own)) if experts else None
    grad_buffer, x_buffer = x_NH.new_empty(2, largest, H).unbind()
    dh_buffer, h_buffer = x_NH.new_empty(2, largest, F).unbind()
    for part, of_chunk in _chunks(counts):
        rows, n = rows_M[part], part.stop - part.start
        weights, gate, up = weights_M[part, None], gate_MF[part], up_MF[part]
        grad, dh, h = grad_buffer[:n], dh_buffer[:n], h_buffer[:n]
        torch.index_select(grad_NH, 0, rows, out=grad)
        for e, at in of_chunk:
            torch.mm(grad[at], own.down[e], out=dh[at])
        activated, factor = gating.activate(gate), gating.factor(up)
        torch.mul(activated, factor, out=h)
        if inputs:  # from dh and h before either is multiplied by the weights
            dweights = torch.linalg.vecdot(dh.to(weights.dtype), h.to(weights.dtype))
            for e, at in of_chunk if biases is not None else ():
                dweights[at] += torch.mv(grad[at].to(weights.dtype), own.down_bias[e].to(weights.dtype))
            dweights_M[part] = dweights
        if experts:
            h.mul_(weights)
            for e, at in of_chunk:
                torch.mm(grad[at].t(), h[at], out=found.down[e])
                if biases is not None:
                    found.down_bias[e] = torch.mv(grad[at].to(weights.dtype).t(), weights[at, 0])
        dh.mul_(weights)
        dup = gating.factor_backward_(torch.mul(activated, dh, out=h), up)  # h is not needed any more
        dgate = gating.activate_backward(dh.mul_(factor), gate)
        if experts:
            x = torch.index_select(x_NH, 0, rows, out=x_buffer[:n])
            for e, at in of_chunk:
                torch.mm(dgate[at].t(), x[at], out=found.gate[e])
                torch.mm(dup[at].t(), x[at], out=found.up[e])
                if biases is not None:
                    torch.sum(dgate[at], 0, out=found.gate_bias[e])
                    torch.sum(dup[at], 0, out=found.up_bias[e])
        if inputs:
            dx = grad  # grad is not needed any more
            for e, at in of_chunk:
                torch.mm(dgate[at], own.gate[e], out=dx[at]).addmm_(dup[at], own.up[e])
            dx_NH.index_add_(0, rows, dx.to(dx_NH.dtype))
    if experts:
        # Experts without rows are in no chunk, and their gradients are uninitialised.
        for e, count in enumerate(counts):
            if count == 0:
                for gradients in found:
                    if gradients is not None:
                        gradients[e].zero_()
    return None if dx_NH is None else dx_NH.to(x_NH.dtype), dweights_M, found


def _sum_type(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _chunks(counts: list[int]) -> Iterator[tuple[slice, list[tuple[int, slice]]]]:
    """Per chunk, the slice of its pairs, and for each of its experts the index and its slice within the chunk."""
    start = end = 0
    experts: list[tuple[int, slice]] = []
    for e, count in enumerate(counts):
        if experts and end + count - start > CHUNK_ROWS:
            yield slice(start, end), experts
            start, experts = end, []
        if count:
            experts.append((e, slice(end - start, end + count - start)))
            end += count
    if experts:
        yield slice(start, end), experts


def _largest(counts: list[int]) -> int:
    return max((part.stop - part.start for part, _ in _chunks(counts)), default=0)


def empty_in_huge_pages(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised tensor of the device and dtype of ``like``; on Linux CPUs in huge pages where it is large.

    The first touch of fresh memory costs a page fault per 4 KiB, which for the gradients of many experts adds up to a
    quarter of a training step; pages of 2 MiB make that negligible.
    """
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or size < HUGE_PAGES_FROM or not hasattr(mmap, "MADV_HUGEPAGE"):
        return like.new_empty(shape)
    # torch's own switch, the environment variable THP_MEM_ALLOC_ENABLE, would apply to every tensor of the process.
    # MAP_PRIVATE, since huge pages of shared memory are governed by another setting of the kernel.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages: small ones give the same numbers
        memory.madvise(mmap.MADV_HUGEPAGE)
    # The tensor keeps the mapping alive; both are freed together.
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)
