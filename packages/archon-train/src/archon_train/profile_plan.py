"""Which training steps of a run are profiled, and what that changes: problems and decisions. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from archon_core.config.rules import POSITIVE, option, shown_value, written_value
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine_config import ROLES
from archon_core.ranks.role_ranks import ACTOR

RANGE = f"{ACTOR}.archon.profile_steps"
TRACES, SNAPSHOTS, ENTRIES = "profiler.trace_steps", "profiler.memory_steps", "profiler.memory_entries"
NOT_REPRESENTATIVE = (
    "the profiler slows the steps that it records: their times and tokens per second are not representative"
)
NO_HISTORY = "a snapshot shows the CUDA allocator, which a CPU does not have; traces have the memory events of CPUs"


def _numbers_of_steps(steps: list[int]) -> str | None:
    return None if all(step >= 1 for step in steps) else "lists of training steps, counted from 1"


_STEPS = {"rule": _numbers_of_steps, "fix": ""}


@dataclass
class ProfilerConfig:
    """Single training steps to profile; ``actor.archon.profile_steps`` adds a range of steps to both lists.

    Attributes:
        trace_steps: training steps, from 1. Every rank writes a trace of each to ``profile/step-<number>/`` in the run
            folder.
        memory_steps: likewise, for snapshots of the memory of CUDA devices.
        memory_entries: number of allocations and frees that a snapshot keeps; older ones are dropped. A thousand take
            about a megabyte of host memory.
    """

    trace_steps: list[int] = field(default_factory=list, metadata=_STEPS)
    memory_steps: list[int] = field(default_factory=list, metadata=_STEPS)
    memory_entries: int = option(100_000, POSITIVE)


@dataclass(frozen=True)
class ProfilePlan:
    """The steps to profile, counted from 1.

    Attributes:
        first_and_last: ``actor.archon.profile_steps``; empty for null.
        trace_steps: steps with a trace.
        memory_steps: steps with a memory snapshot.
        memory_entries: allocations and frees that a snapshot keeps.
    """

    first_and_last: tuple[int, ...] = ()
    trace_steps: frozenset[int] = frozenset()
    memory_steps: frozenset[int] = frozenset()
    memory_entries: int = 0

    @classmethod
    def of(cls, config: Any) -> ProfilePlan:
        """The plan of a run's configuration."""
        written = _profile_steps(config, ACTOR) or ()
        steps = frozenset(range(written[0], written[1] + 1)) if written else frozenset()
        options = config.profiler
        return cls(
            tuple(written),
            steps | set(options.trace_steps),
            steps | set(options.memory_steps),
            options.memory_entries,
        )

    @property
    def steps(self) -> frozenset[int]:
        """All steps with a profile."""
        return self.trace_steps | self.memory_steps

    def problem(self, total_steps: int) -> str | None:
        """A found / allowed / fix sentence if the range does not fit into a run of ``total_steps`` steps."""
        if not self.first_and_last or self.first_and_last[1] <= total_steps:
            return None
        return (
            f"found {shown_value(list(self.first_and_last))}, and the run has {total_steps} steps; allowed are steps "
            f"from 1 to {total_steps}; choose other steps, or raise trainer.max_steps"
        )

    def decisions(self, *, done: int, total_steps: int, device: str) -> Iterator[Decision]:
        """What the user should know of these profiles.

        Args:
            done: steps before this start of the run.
            total_steps: steps of the whole run.
            device: ``cpu`` or ``cuda``.
        """
        if not self.steps:
            return
        earlier = {step for step in self.steps if step <= done}
        later = {step for step in self.steps if step > total_steps}
        remaining = self.steps - earlier - later
        if earlier:
            yield self._unused(earlier, f"the run continues after step {done}; an earlier start may have profiled them")
        if later:
            yield self._unused(later, f"the run has {total_steps} steps")
        if traced := remaining & self.trace_steps:
            yield Decision(self._option(TRACES), _listed(traced), "traced", NOT_REPRESENTATIVE)
        if (snapshots := remaining & self.memory_steps) and device == "cpu":
            yield Decision(self._option(SNAPSHOTS), _listed(snapshots), "no memory snapshots", NO_HISTORY)

    def _option(self, name: str) -> str:
        return RANGE if self.first_and_last else name

    def _unused(self, steps: Collection[int], reason: str) -> Decision:
        return Decision(self._option("profiler"), _listed(steps), "not profiled", reason)


def profile_problems(config: Any) -> Iterator[tuple[str, str]]:
    """Invalid options: the dotted name and a found / allowed / fix sentence."""
    written = _profile_steps(config, ACTOR)
    for role in ROLES:
        found = _profile_steps(config, role)
        if role != ACTOR and found is not None and found != written:
            yield (
                f"{role}.archon.profile_steps",
                f"found {shown_value(found)}; allowed is null, since a trace covers all models of a process; set "
                f"{RANGE}",
            )
    is_range = written is not None and len(written) == 2 and written[0] <= written[1]
    if is_range and config.trainer.max_steps is not None:
        text = ProfilePlan(tuple(written)).problem(config.trainer.max_steps)
        if text is not None:
            yield RANGE, text


def unused_profiler_options(config: Any, explicit: Collection[str]) -> Iterator[Decision]:
    """Options of snapshots without a step that has one.

    Args:
        explicit: dotted names of the options that the user wrote.
    """
    if ENTRIES in explicit and not ProfilePlan.of(config).memory_steps:
        yield Decision(ENTRIES, str(config.profiler.memory_entries), "no effect", "no step has a memory snapshot")


def _profile_steps(config: Any, role: str) -> list[int] | None:
    """The option of a role's section; engines other than Archon's do not have it."""
    return getattr(getattr(getattr(config, role), "archon", None), "profile_steps", None)


def _listed(steps: Collection[int]) -> str:
    return written_value(sorted(steps))
