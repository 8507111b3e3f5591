"""Numbers as people read them: round ones on axes, short ones in texts."""

from __future__ import annotations

import math


def round_step(least: float) -> float:
    """The next of ..., 0.5, 1, 2, 5, 10, ... that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def short(number: float) -> str:
    """Four digits, or all digits before the point where there are more."""
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:.4g}"
