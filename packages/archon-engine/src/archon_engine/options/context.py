"""The input of the rules in ``options.combinations``: options, which were written, the device and the pipeline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from archon_core.contracts.pipeline import ScheduleSpec

if TYPE_CHECKING:
    from archon_engine.options.archon import ArchonEngineConfig


@dataclass(frozen=True)
class OptionContext:
    """What the rules look at.

    Attributes:
        engine: the section of the configuration that describes the model.
        device: ``cpu`` or ``cuda``; ``None`` before it is known.
        written: options of the section that the user wrote, as against defaults, such as ``archon.ac_mode``.
        pipeline_ranks: of the layout; ``None`` before it is known.
        schedule: of a pipeline; ``None`` before it is known, and without one.
    """

    engine: ArchonEngineConfig
    device: str | None = None
    written: frozenset[str] = field(default_factory=frozenset)
    pipeline_ranks: int | None = None
    schedule: ScheduleSpec | None = None

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
    ) -> OptionContext:
        """The context of ``role``; ``explicit`` are the dotted names of all options that the user wrote."""
        written = (name.removeprefix(f"{role}.") for name in explicit if name.startswith(f"{role}."))
        return cls(engine, device, frozenset(written), pipeline_ranks, schedule)

    @property
    def splits_backward(self) -> bool:
        """Whether a schedule computes gradients of inputs and of weights apart."""
        return self.schedule is not None and self.schedule.splits_backward and self.engine.optimizer is not None

    @property
    def is_alone(self) -> bool:
        """Whether the model is known not to be cut into stages."""
        return self.pipeline_ranks == 1

    def has_written(self, *options: str) -> bool:
        """Whether the user wrote one of these options of ``archon``."""
        return any(f"archon.{option}" in self.written for option in options)

    @property
    def is_default_compile_on_cpu(self) -> bool:
        """Whether compilation is only switched on by default, and the device is a CPU."""
        asked = self.engine.archon.enable_compile
        return asked and self.device == "cpu" and not self.has_written("enable_compile")

    @property
    def ac_mode(self) -> str:
        """The mode of activation checkpointing that ``gradient_checkpointing`` lets through."""
        recomputes = self.engine.gradient_checkpointing and self.engine.optimizer is not None
        return self.engine.archon.ac_mode if recomputes else "none"

    def recomputes_otherwise_than(self, mode: str) -> bool:
        """Whether activation checkpointing is on, in another mode."""
        return self.ac_mode not in ("none", mode)

    @property
    def recomputes_by_operation(self) -> bool:
        """Whether activation checkpointing chooses by operation what to keep."""
        return self.ac_mode == "selective" and self.engine.archon.selective_ac_option == "op"
