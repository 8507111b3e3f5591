"""Learning-rate schedules as a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal

LrSchedule = Literal["constant", "linear", "cosine", "wsd"]


def lr_factor(
    step: int,
    total_steps: int | None,
    schedule: LrSchedule,
    *,
    warmup_steps: int = 0,
    decay_steps: int = 0,
    min_ratio: float = 0.0,
) -> float:
    """The learning rate at step ``step``, counted from 0, as a share of the peak.

    Args:
        total_steps: steps of the whole run; required by all schedules but ``constant``.
        schedule: ``constant``; ``linear`` and ``cosine`` fall from the end of the warm-up to ``min_ratio`` at the last
            step; ``wsd`` (warm-up, stable, decay: arXiv:2404.06395) stays at the peak until the last ``decay_steps``.
        warmup_steps: number of steps in which the rate rises linearly; the first step uses 1 / warmup_steps, not 0.
        decay_steps: number of steps in which ``wsd`` decays.
        min_ratio: lowest share.

    Raises:
        ValueError: a decaying schedule without ``total_steps``.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    if total_steps is None:
        raise ValueError(
            f"lr_scheduler_type={schedule!r}: found no number of steps, which it needs; set trainer.max_steps"
        )
    # The last step at the peak: all of wsd's decay steps are below it.
    first = max(total_steps - 1 - decay_steps, warmup_steps) if schedule == "wsd" else warmup_steps
    if step <= first:
        return 1.0
    progress = min(1.0, (step - first) / max(total_steps - 1 - first, 1))
    shape = (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
    return min_ratio + (1 - min_ratio) * shape
