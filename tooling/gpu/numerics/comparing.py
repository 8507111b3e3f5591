"""Relative differences between tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest magnitude expected; infinite where a number is not finite."""
    own, whole = found.detach().double().cpu(), expected.detach().double().cpu()
    if not (own.isfinite().all() and whole.isfinite().all()):
        return math.inf
    if not whole.numel():
        return 0.0 if own.shape == whole.shape else math.inf
    difference, scale = float((own - whole).abs().max()), float(whole.abs().max())
    return 0.0 if difference == 0.0 else difference / scale if scale else math.inf


def worst(errors: Iterable[float]) -> float:
    """The largest error; NaN counts as infinite, which ``max`` might pass over."""
    return max((math.inf if math.isnan(error) else error for error in errors), default=math.inf)
