"""Options of a storm over asynchronous training, and its schedule: pure, and a function of the options."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

KINDS = ("collector", "trainer", "server")
RANK = "rank"
"""One process of a trainer with several; ``trainer`` is then the process that started them."""

CALM_STEPS = 3
"""Steps at the end without kills."""

AT_ONCE = 0.25
"""Share of kills that follow the one before within seconds, so that they strike what just starts."""


@dataclass(frozen=True)
class AsyncStormOptions:
    """One storm.

    Attributes:
        seed: of the schedule.
        events: number of kills.
        steps: training steps of the run.
        staleness: ``rollout.max_head_offpolicyness``.
        servers: servers that each start of the run has.
        ranks: processes of the trainer.
        dynamic_sampling: sample further groups in place of those without different rewards.
        kinds: what is killed.
        seconds: time until a storm that has not ended counts as a deadlock.
    """

    seed: int = 0
    events: int = 20
    steps: int = 30
    staleness: int = 2
    servers: int = 2
    ranks: int = 1
    dynamic_sampling: bool = False
    kinds: tuple[str, ...] = KINDS
    seconds: float = 600.0

    def as_data(self) -> dict[str, Any]:
        """The options as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        kind: what is killed.
        step: it waits until the run has consumed so many batches; -1 to follow the kill before it.
        delay: seconds that it then waits.
        choice: which of several processes, as a share of their number.
    """

    kind: str
    step: int
    delay: float
    choice: float

    def as_data(self) -> dict[str, Any]:
        """The kill as a JSON object."""
        return asdict(self)


def plan_kills(options: AsyncStormOptions) -> tuple[Kill, ...]:
    """The kills in order; every kind comes about equally often."""
    draw = random.Random(f"asynchronous storm {options.seed}")
    kinds: list[str] = []
    while len(kinds) < options.events:
        deck = list(options.kinds)
        draw.shuffle(deck)
        kinds += deck
    steps = sorted(draw.randint(0, options.steps - CALM_STEPS) for _ in range(options.events))
    kills = []
    for kind, step in zip(kinds[: options.events], steps, strict=True):
        follows = kills and draw.random() < AT_ONCE
        delay = draw.uniform(0.0, 2.0) if follows else draw.uniform(0.0, 0.3)
        kills.append(Kill(kind, -1 if follows else step, round(delay, 3), draw.random()))
    return tuple(kills)
