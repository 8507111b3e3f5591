"""Replays tasks of ranks that share processor cores, as processes on a CPU do.

Cores are shared as an operating system shares them: while k ranks of a machine run and its cores suffice for c of them,
each runs at the speed min(1, c / k). A rank that waits for a message uses no core. Speeds change when a rank starts or
ends a task, so the replay goes from one such moment to the next.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from archon_core.contracts.pipeline import SharedCores


class Task(NamedTuple):
    """A task of a rank.

    Attributes:
        seconds: that it takes at full speed.
        source: number of the task of another stage whose result it needs; -1 if there is none.
        message: seconds from the end of ``source`` until its result arrives.
    """

    seconds: float
    source: int = -1
    message: float = 0.0


def share_cores(tasks: Sequence[Task], lengths: Sequence[int], cores: SharedCores) -> tuple[list[float], list[float]]:
    """Ends and starts of all tasks.

    Args:
        tasks: of all ranks, one rank after the other. A rank runs its tasks in order.
        lengths: for each rank, the number of its tasks.
        cores: which ranks share cores.
    """
    starts, ends = [math.inf] * len(tasks), [math.inf] * len(tasks)
    behind = [*accumulate(lengths)]
    following = [end - length for end, length in zip(behind, lengths, strict=True)]
    left: dict[int, float] = {}
    """Rank -> seconds at full speed that its running task still takes."""
    now = 0.0
    while True:
        arrivals = []
        for rank, number in enumerate(following):
            if rank in left or number == behind[rank]:
                continue
            task = tasks[number]
            arrival = now if task.source < 0 else ends[task.source] + task.message
            if arrival <= now:
                starts[number], left[rank] = now, task.seconds
            else:
                arrivals.append(arrival)
        running = Counter(cores.machine_of[rank] for rank in left)
        speeds = {machine: min(1.0, cores.at_once / count) for machine, count in running.items()}
        finishes = {rank: now + seconds / speeds[cores.machine_of[rank]] for rank, seconds in left.items()}
        moment = min([*finishes.values(), *arrivals], default=math.inf)
        if moment == math.inf:
            return ends, starts
        for rank, finish in finishes.items():
            if finish <= moment:
                ends[following[rank]] = moment
                following[rank] += 1
                del left[rank]
            else:
                left[rank] -= (moment - now) * speeds[cores.machine_of[rank]]
        now = moment
