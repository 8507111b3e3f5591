"""The input of the rules in ``options.combinations``: options, which of them the user wrote, device and pipeline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from archon_core.contracts.pipeline import ScheduleSpec

if TYPE_CHECKING:
    from archon_engine.options.archon import ArchonEngineConfig


@dataclass(frozen=True)
class OptionContext:
    """The facts that the rules depend on.

    Attributes:
        engine: the section of the configuration that describes the model.
        device: ``cpu`` or ``cuda``; ``None`` before it is known.
        written: options of the section that the user wrote, as against defaults, such as ``archon.ac_mode``.
        pipeline_ranks: number of pipeline ranks in the layout; ``None`` before it is known.
        schedule: the pipeline schedule; ``None`` before it is known, and without a pipeline.
        context_ranks: number of context ranks in the layout; ``None`` before it is known.
    """

    engine: ArchonEngineConfig
    device: str | None = None
    written: frozenset[str] = field(default_factory=frozenset)
    pipeline_ranks: int | None = None
    schedule: ScheduleSpec | None = None
    context_ranks: int | None = None

    @classmethod
    def of(
        cls,
        engine: ArchonEngineConfig,
        role: str,
        explicit: Iterable[str],
        *,
        device: str | None = None,
        pipeline_ranks: int | None = None,
        schedule: ScheduleSpec | None = None,
        context_ranks: int | None = None,
    ) -> OptionContext:
        """The context of ``role``; ``explicit`` are the dotted names of all options that the user wrote."""
        written = (name.removeprefix(f"{role}.") for name in explicit if name.startswith(f"{role}."))
        return cls(engine, device, frozenset(written), pipeline_ranks, schedule, context_ranks)

    @property
    def splits_backward(self) -> bool:
        """Whether the schedule computes gradients of inputs and of weights separately."""
        return self.schedule is not None and self.schedule.splits_backward and self.engine.optimizer is not None

    @property
    def has_no_pipeline(self) -> bool:
        """Whether the layout is known to have no pipeline."""
        return self.pipeline_ranks == 1

    def has_written(self, *options: str) -> bool:
        """Whether the user wrote one of these options of ``archon``."""
        return any(f"archon.{option}" in self.written for option in options)

    @property
    def is_default_compile_on_cpu(self) -> bool:
        """Whether compilation is on only by default, and the device is a CPU."""
        asked = self.engine.archon.enable_compile
        return asked and self.device == "cpu" and not self.has_written("enable_compile")

    @property
    def ac_mode(self) -> str:
        """The mode of activation checkpointing; ``none`` without ``gradient_checkpointing`` or an optimizer."""
        recomputes = self.engine.gradient_checkpointing and self.engine.optimizer is not None
        return self.engine.archon.ac_mode if recomputes else "none"

    def has_other_ac_mode_than(self, mode: str) -> bool:
        """Whether activation checkpointing is off, or in another mode than ``mode``."""
        return self.ac_mode != mode

    @property
    def recomputes_by_operation(self) -> bool:
        """Whether activation checkpointing selects results by operation."""
        return self.ac_mode == "selective" and self.engine.archon.selective_ac_option == "op"
