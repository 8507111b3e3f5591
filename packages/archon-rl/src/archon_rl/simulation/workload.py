"""``Workload``: how long the parts of asynchronous training take."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from archon_core.config.rules import NOT_NEGATIVE, POSITIVE, number, option
from archon_core.seeding import derive_seed
from archon_rl.collector.batches import BatchRule, Pace


@dataclass(frozen=True)
class Workload:
    """Times of a run, in seconds.

    Attributes:
        batch_size: groups that a step takes (``data.batch_size``).
        group_seconds: mean time to sample a group, rewards included, while its server samples ``concurrency`` of them.
        train_seconds: a training step without the wait for its batch and without publication.
        concurrency: groups that a server samples at a time; further ones wait on the server.
        servers: number of servers.
        spread: standard deviation of the time of a group, divided by the mean. The times are log-normal.
        publish_seconds: publication of weights, in which the trainer waits and the servers go on.
        rejected: share of groups that no step trains on, because dynamic sampling rejects them, for example.
        max_rounds: rounds of sampling per step (``actor.dynamic_sampling_max_rounds``).
        max_concurrent_rollouts: groups in progress on all servers; ``None`` for ``batch_size``, as in training.
        queue_size: groups in progress or waiting for their step; ``None`` for 16 times ``max_concurrent_rollouts``.
        seed: of the random times and rejections.
    """

    batch_size: int = option(0, POSITIVE)
    group_seconds: float = option(0.0, number(above=0))
    train_seconds: float = option(0.0, number(above=0))
    concurrency: int = option(0, POSITIVE)
    servers: int = option(1, POSITIVE)
    spread: float = option(0.5, number(least=0))
    publish_seconds: float = option(0.0, number(least=0))
    rejected: float = option(0.0, number(least=0, below=1))
    max_rounds: int = option(10, POSITIVE)
    max_concurrent_rollouts: int | None = option(None, POSITIVE)
    queue_size: int | None = option(None, POSITIVE)
    seed: int = option(1, NOT_NEGATIVE)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Options that exclude one another; see ``archon_core.config.validation``."""
        if self.queue_size is not None and 0 < self.queue_size < self.batch_size:
            yield (
                "queue_size",
                f"found {self.queue_size}; a step takes {self.batch_size} groups; allowed is at least that; raise it, "
                "or leave it out",
            )

    @property
    def n_places(self) -> int:
        """Groups that all servers sample at a time."""
        return self.servers * self.concurrency

    @property
    def rule(self) -> BatchRule:
        """Which groups belong to a step."""
        return BatchRule(self.batch_size, self.max_rounds)

    def pace(self, staleness: int) -> Pace:
        """How far sampling may run ahead with ``rollout.max_head_offpolicyness=staleness``."""
        return Pace.with_defaults(staleness, self.batch_size, self.max_concurrent_rollouts, self.queue_size)

    def seconds_of(self, group: int) -> float:
        """Time to sample a group; it depends on its number and the seed alone."""
        if self.spread == 0:
            return self.group_seconds
        variance = math.log1p(self.spread**2)  # of the logarithm
        normal = random.Random(derive_seed(self.seed, "simulated duration", group)).gauss(0.0, 1.0)
        return self.group_seconds * math.exp(math.sqrt(variance) * normal - variance / 2)

    def rejects(self, group: int) -> bool:
        """Whether no step trains on a group."""
        return random.Random(derive_seed(self.seed, "simulated rejection", group)).random() < self.rejected
