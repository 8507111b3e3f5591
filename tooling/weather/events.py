"""The schedule of a storm: which fault strikes which server at which version. Pure, and a function of the options."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from weather.options import BUCKETS, CALM_VERSIONS, StormOptions

Moment = Literal["publication", "generation", "any"]

SERVER_FAULTS: dict[str, Moment] = {
    "terminate": "generation",  # SIGTERM with drain
    "die before prepare": "publication",
    "die in transfer": "publication",
    "die before commit": "publication",
    "die in generation": "generation",
    "stop in transfer": "publication",  # SIGSTOP, later SIGCONT
    "stop in generation": "generation",
    "hang": "generation",  # HTTP answers, the engine does not
    "slow": "any",
    "drop a tensor": "publication",
    "swap a pair": "publication",
    "flip a bit": "publication",
    "read the old slot": "publication",
    "keep old weights": "publication",  # and answer 200
    "keep old weights, say new": "publication",
    "wrong version in state": "publication",  # with the right weights
    "wrong version on tokens": "publication",
    "wake after reuse": "publication",  # reads a slot while it is written again
    "commit late": "publication",
}
"""Faults that a server carries out at a given call or token."""

SENT_FAULTS = ("flap", "late control call")
"""Faults of one server that come from outside."""

COMMON_FAULTS = ("unreadable registry", "clock skew", "full memory")
"""Faults of the trainer's surroundings."""

KINDS = (*SERVER_FAULTS, *SENT_FAULTS, *COMMON_FAULTS)

RegistryFault = Literal["torn entry", "lost folder"]


@dataclass(frozen=True)
class Event:
    """One fault.

    Attributes:
        number: from 0, unique in the storm.
        kind: one of ``KINDS``.
        version: the step in which it strikes.
        slot: the place of the server; -1 for a fault of the surroundings.
        at: bucket or token before which it strikes.
        seconds: how long it lasts, if it lasts.
        variant: of the kind, such as a ``RegistryFault``.
    """

    number: int
    kind: str
    version: int
    slot: int = -1
    at: int = 0
    seconds: float = 0.0
    variant: str = ""

    def as_data(self) -> dict[str, Any]:
        """The event as a JSON object."""
        return asdict(self)


def plan_storm(options: StormOptions) -> tuple[Event, ...]:
    """The events of a storm, by version. Every kind comes about equally often, and a server has one per version."""
    draw = random.Random(f"storm {options.seed}")
    stormy = range(options.versions - CALM_VERSIONS)
    places = [(version, slot) for version in stormy for slot in range(options.servers)]
    draw.shuffle(places)
    times = [version for version in stormy if version]
    events = []
    for number, kind in enumerate(_kinds(draw, options.events)):
        if kind in COMMON_FAULTS:
            version, slot = draw.choice(times or [0]), -1
        else:
            version, slot = places.pop()
        events.append(_event(draw, number, kind, version, slot, options))
    return tuple(sorted(events, key=lambda event: (event.version, event.slot, event.number)))


def _kinds(draw: random.Random, n: int) -> Sequence[str]:
    """``n`` kinds: whole decks, each shuffled."""
    kinds: list[str] = []
    while len(kinds) < n:
        deck = list(KINDS)
        draw.shuffle(deck)
        kinds += deck
    return kinds[:n]


def _event(draw: random.Random, number: int, kind: str, version: int, slot: int, options: StormOptions) -> Event:
    limit = options.call_seconds
    seconds, at, variant = 0.0, 0, ""
    match kind:
        case "stop in transfer" | "wake after reuse" | "commit late":
            seconds = limit * draw.uniform(1.3, 1.8)
        case "stop in generation" | "hang":
            seconds = draw.uniform(0.3, 4 * options.probe_seconds)
        case "slow":
            seconds = draw.uniform(0.01, 0.05)
        case "late control call":
            seconds = draw.uniform(0.1, 0.4)
        case "unreadable registry":
            seconds, variant = draw.uniform(0.3, 1.5), draw.choice(get_args(RegistryFault))
        case "clock skew":
            seconds = draw.choice((-1, 1)) * 10 ** draw.uniform(0, 5)
            slot = draw.randrange(-1, options.servers)
        case "full memory":
            seconds = draw.uniform(0.2, 1.0)
    if SERVER_FAULTS.get(kind) == "generation":
        at = draw.randrange(1, 8)
    elif kind in ("die in transfer", "stop in transfer", "wake after reuse", "read the old slot"):
        at = draw.randrange(BUCKETS - 2)
    elif kind == "die before commit":
        at = draw.randrange(2)  # before the answer that it has everything, or before it switches
    return Event(number, kind, version, slot, at, round(seconds, 3), variant)
