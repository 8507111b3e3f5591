"""Stateless uniform numbers: a pure function of seed and position in the stream.

A generator object would have to be kept, moved and advanced per sequence. A counter-based generator (Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", 2011) computes number t of stream s as a hash of both, so all rows of a
batch draw in one vectorised call, and a row's numbers depend on no other row and on no device. The hash is the
finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# int64 multiplication wraps modulo 2**64, as the hash requires; constants are written as signed numbers.
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLIER_2 = 0x94D049BB133111EB - 2**64


def seed_tensor(seeds: Iterable[int], device: torch.device | str = "cpu") -> Tensor:
    """Seeds of any size and sign as int64, modulo 2**64."""
    wrapped = [seed % 2**64 for seed in seeds]
    return torch.tensor([s - 2**64 if s >= 2**63 else s for s in wrapped], dtype=torch.int64, device=device)


def uniforms(seeds: Tensor, places: Tensor) -> Tensor:
    """The numbers at positions ``places`` of the streams ``seeds``: float64 in [0, 1), multiples of 2**-53.

    Args:
        seeds: int64, from ``seed_tensor``.
        places: int64, broadcastable with ``seeds``.
    """
    # Hash the seed first: otherwise streams of neighbouring seeds would be shifted copies of each other.
    bits = _mix(_mix(seeds) + places * _GOLDEN_GAMMA)
    return _shift_right(bits, 11).to(torch.float64) * 2.0**-53


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _MULTIPLIER_1
    z = (z ^ _shift_right(z, 27)) * _MULTIPLIER_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift; ``>>`` on int64 would copy the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
