"""Uniform numbers that are a function of (seed, place in the stream) and carry no state.

A generator object would have to be kept, moved and advanced per sequence. A counter-based generator (Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", 2011) gives number t of stream s as a hash of both, so all rows of a
batch draw in one vectorised call and a row's numbers cannot depend on its neighbours, on any device. The hash is
SplitMix64's finaliser (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# int64 multiplication wraps, which is what arithmetic modulo 2**64 needs; constants are written as signed numbers.
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLIER_2 = 0x94D049BB133111EB - 2**64


def seed_tensor(seeds: Iterable[int], device: torch.device | str = "cpu") -> Tensor:
    """Seeds of any size and sign as int64, modulo 2**64."""
    wrapped = [seed % 2**64 for seed in seeds]
    return torch.tensor([s - 2**64 if s >= 2**63 else s for s in wrapped], dtype=torch.int64, device=device)


def uniforms(seeds: Tensor, places: Tensor) -> Tensor:
    """Number ``places`` of each of the streams ``seeds``: float64 in [0, 1), multiples of 2**-53.

    Args:
        seeds: int64, as ``seed_tensor`` makes them.
        places: int64, broadcastable with ``seeds``.
    """
    # Hashing the seed first keeps streams of neighbouring seeds from being shifted copies of one another.
    bits = _mix(_mix(seeds) + places * _GOLDEN_GAMMA)
    return _shift_right(bits, 11).to(torch.float64) * 2.0**-53


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _MULTIPLIER_1
    z = (z ^ _shift_right(z, 27)) * _MULTIPLIER_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift in zeros; the operator on int64 would repeat the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
