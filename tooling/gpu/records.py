"""What a check measures, and what becomes of it: a record for the JSON file and the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

Status = Literal["pass", "fail", "skipped", "error", "timeout"]


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        measured: name -> number, such as a relative error, tokens per second or bytes.
        bounds: name -> the largest value that passes; NaN never does.
        goals: name -> the value to reach; reported, and never a failure.
        message: what else there is to know.
    """

    measured: Mapping[str, float]
    bounds: Mapping[str, float] = field(default_factory=dict)
    goals: Mapping[str, float] = field(default_factory=dict)
    message: str = ""

    @property
    def exceeded(self) -> list[str]:
        """The names whose value is above its bound, or missing."""
        return [name for name, bound in self.bounds.items() if not self.measured.get(name, float("nan")) <= bound]

    @property
    def missed(self) -> list[str]:
        """The goals that were not reached."""
        return [name for name, goal in self.goals.items() if not self.measured.get(name, float("nan")) >= goal]


class Skipped(Exception):  # noqa: N818 - not an error
    """Raised by a check that this machine cannot run; the message says why."""


@dataclass(frozen=True)
class Context:
    """What every check is given.

    Attributes:
        device: ``cuda`` or ``cpu``.
        work: folder shared by the groups of one run, for what they prepare for each other.
    """

    device: str
    work: Path

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


@dataclass(frozen=True)
class Check:
    """One measurement.

    Attributes:
        name: unique within its group.
        run: does it.
    """

    name: str
    run: Callable[[], Outcome]


@dataclass(frozen=True)
class Record:
    """A check that ran, or should have.

    Attributes:
        name: ``part.group/check``.
        status: ``timeout`` also for checks that were not reached in time.
        measured, bound, goal: see ``Outcome``.
        seconds: how long it took.
        message: why it failed or was skipped, or what else there is to know.
    """

    name: str
    status: Status
    measured: Mapping[str, float] = field(default_factory=dict)
    bound: Mapping[str, float] = field(default_factory=dict)
    goal: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    message: str = ""

    @classmethod
    def of(cls, name: str, outcome: Outcome, seconds: float) -> Record:
        """Judge an outcome."""
        exceeded, missed = outcome.exceeded, outcome.missed
        notes = [outcome.message] if outcome.message else []
        notes += [f"above the bound: {', '.join(exceeded)}"] if exceeded else []
        notes += [f"below the goal: {', '.join(missed)}"] if missed else []
        return cls(
            name,
            "fail" if exceeded else "pass",
            dict(outcome.measured),
            dict(outcome.bounds),
            dict(outcome.goals),
            seconds,
            "; ".join(notes),
        )


def is_wanted(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern selects a check or group; without patterns, all are selected."""
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)
