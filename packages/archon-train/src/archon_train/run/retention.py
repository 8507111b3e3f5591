"""Which checkpoints of a run may go. A pure function of their steps."""

from __future__ import annotations

from collections.abc import Collection


def superseded(steps: Collection[int], *, keep_last: int | None, keep_every: int | None) -> list[int]:
    """The steps whose checkpoints are not kept, ascending; never the last one.

    Args:
        steps: of all whole checkpoints.
        keep_last: how many of the last ones are kept; ``None`` for all.
        keep_every: those of steps that this divides are kept as well; ``None`` for no more.

    >>> superseded([10, 20, 30, 40, 50], keep_last=2, keep_every=20)
    [10, 30]
    """
    if keep_last is None:
        return []
    assert keep_last > 0, "a run without a checkpoint cannot go on"
    older = sorted(steps)[:-keep_last]
    return [step for step in older if keep_every is None or step % keep_every]
