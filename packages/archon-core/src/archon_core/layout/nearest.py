"""The valid sizes closest to invalid ones, for suggestions. Pure arithmetic."""

from __future__ import annotations

import math


def smallest_data_size(at_least: int, ranks_per_unit: int, group: int) -> int:
    """The smallest data size from ``at_least`` for which ``group`` divides data size x ``ranks_per_unit``."""
    step = group // math.gcd(group, ranks_per_unit)
    return -(-at_least // step) * step


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of ``number`` up to ``at_most``."""
    return next(size for size in range(min(number, at_most), 0, -1) if number % size == 0)


def largest_expert_sizes(ranks: int, ep: int, etp: int) -> tuple[int, int]:
    """Expert sizes up to ``ep`` and ``etp`` whose product divides ``ranks``, with ``etp`` unchanged if possible."""
    kept_etp = largest_divisor(ranks, etp)
    return largest_divisor(ranks // kept_etp, ep), kept_etp
