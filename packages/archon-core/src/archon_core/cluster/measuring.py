"""Measures the links of a layout between the ranks of torch's default group. Collective."""

from __future__ import annotations

import time
from typing import Any

from archon_core.cluster.links import Link, axes_of, ring_rounds
from archon_core.layout.dims import ParallelDims
from archon_core.ranks.ranks import Ranks

SMALL_MESSAGES = 30
LARGE_MESSAGES = 4
BYTES = {"cpu": 8 * 2**20, "cuda": 128 * 2**20}
"""Size of a large message: long enough for the full rate, and a fraction of a second at 1 Gbit/s."""


def measure_links(dims: ParallelDims, ranks: Ranks, device: str) -> list[Link]:
    """The links of every axis, in the order of axes and ranks; equal on all ranks.

    All groups of an axis exchange at once, as they do in a run; the best of several messages counts.
    """
    import torch

    small = torch.zeros(8, dtype=torch.uint8, device=device)
    large = torch.zeros(BYTES[torch.device(device).type], dtype=torch.uint8, device=device)
    own: list[Link] = []
    for axis, grid in axes_of(dims):
        for pairs in ring_rounds(grid.groups(axis)):
            ranks.barrier()
            for first, second in pairs:
                if ranks.rank in (first, second):
                    other, leads = first + second - ranks.rank, ranks.rank == first
                    _exchange(large, other, leads)  # connects, and warms the memory up
                    latency = min(_exchange(small, other, leads) for _ in range(SMALL_MESSAGES))
                    seconds = min(_exchange(large, other, leads) for _ in range(LARGE_MESSAGES))
                    if leads:
                        own.append(Link(axis, (first, second), latency, large.numel() / seconds))
    axes = [axis for axis, _ in axes_of(dims)]
    measured = [link for links in ranks.gather(own) for link in links]
    return sorted(measured, key=lambda link: (axes.index(link.axis), link.ranks))


def _exchange(message: Any, other: int, leads: bool) -> float:
    """Send a message there and back; returns the seconds of one way."""
    import torch
    import torch.distributed as dist

    _finish(torch, message)
    start = time.perf_counter()
    if leads:
        dist.send(message, other)
        dist.recv(message, other)
    else:
        dist.recv(message, other)
        dist.send(message, other)
    _finish(torch, message)
    return (time.perf_counter() - start) / 2


def _finish(torch: Any, message: Any) -> None:
    if message.is_cuda:
        torch.cuda.synchronize(message.device)
