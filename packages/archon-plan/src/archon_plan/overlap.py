"""How long a step takes when sampling and training overlap, from the times of both.

The recurrence has one line per step. Batch n may start when the servers hold the weights of step n - staleness, have
started all groups of the batch before, and the queue has room; it is complete when the last of its groups is. The
trainer takes it as soon as both are ready, trains and publishes. With equal batches a step takes ::

    max(train, work, (latency + train) / (staleness + 1), latency / queued)

``archon simulate`` plays the same rules group by group (docs/simulate.md), which a search has no time for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WARM_UP = 0.2
"""Share of the steps at the start that are not counted: the window is still empty."""

NEVER_WAITS = 0.02
"""Share of time below which waiting does not limit a run."""


@dataclass(frozen=True)
class BatchTimes:
    """Sampling of one batch.

    Attributes:
        work: seconds until the servers have started the last group of the batch and could go on with the next one.
        latency: seconds from the start of its first group to the end of its last one; at least ``work``.
    """

    work: float
    latency: float


@dataclass(frozen=True)
class Pace:
    """Steps of a run.

    Attributes:
        seconds: of a step.
        trainer_waits: share of the time in which the trainer waits for a batch.
        servers_wait: share of the places for running sequences that are empty, over time.
    """

    seconds: float
    trainer_waits: float
    servers_wait: float

    @property
    def limit(self) -> str:
        """The part that is never idle: ``training`` or ``sampling``; ``staleness`` if both wait for its bound."""
        if self.trainer_waits < NEVER_WAITS:
            return "training"
        return "sampling" if self.servers_wait < NEVER_WAITS else "staleness"


@dataclass(frozen=True)
class Step:
    """When the parts of a step take place, in seconds from the start of the run.

    Attributes:
        begun: the first group of the batch starts.
        complete: its last group ends.
        taken: training starts.
        published: the servers hold the new weights.
    """

    begun: float
    complete: float
    taken: float
    published: float


def play(train: float, batches: Sequence[BatchTimes], staleness: int, queued: float = math.inf) -> list[Step]:
    """The steps of a run that trains on these batches; see ``pace``."""
    steps: list[Step] = []
    started = 0.0
    room = math.floor(queued) if math.isfinite(queued) else len(batches)
    assert room >= 1, "no batch would ever be complete"
    for number, batch in enumerate(batches):
        begun = started
        if number > staleness:
            begun = max(begun, steps[number - staleness - 1].published)
        if number >= room:
            begun = max(begun, steps[number - room].taken)
        started = begun + batch.work
        complete = begun + batch.latency
        taken = max(complete, steps[-1].published) if steps else complete
        steps.append(Step(begun, complete, taken, taken + train))
    return steps


def pace(train: float, batches: Sequence[BatchTimes], staleness: int, queued: float = math.inf) -> Pace:
    """The mean step of a run that trains on these batches.

    Args:
        train: seconds to train on a batch and publish the weights.
        batches: in the order of their steps, more than twice ``staleness`` + 1; a hundred give the mean.
        staleness: ``rollout.max_head_offpolicyness``; 0 samples and trains in turn.
        queued: batches that are sampled or wait for their step (``rollout.queue_size`` over the batch size); from 1.
    """
    assert len(batches) > 2 * (staleness + 1), "too few batches for a mean"
    steps = play(train, batches, staleness, queued)
    # Steps come in bursts of staleness + 1; whole bursts are counted.
    bursts = max(1, int((1 - WARM_UP) * len(batches)) // (staleness + 1))
    n_steps = bursts * (staleness + 1)
    first = len(batches) - n_steps
    seconds = steps[-1].published - steps[first - 1].published
    waited = sum(step.taken - before.published for before, step in pairwise(steps[first - 1 :]))
    work = sum(batch.work for batch in batches[first:])
    return Pace(seconds / n_steps, waited / seconds, max(0.0, 1 - work / seconds))
