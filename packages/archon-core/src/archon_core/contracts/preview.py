"""Dry runs of engines: what is known before any process starts, and what the engine answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archon_core.contracts.decisions import Decision
    from archon_core.contracts.model import ModelSpec
    from archon_core.contracts.pipeline import PipelineSpec, ScheduleSpec
    from archon_core.contracts.rollout import RolloutConfig
    from archon_core.layout import Layout


@dataclass(frozen=True)
class EngineOutline:
    """An engine before any process starts.

    Attributes:
        config: the role's section, an ``EngineConfig`` with the engine's options.
        role: the section's name.
        explicit: dotted names of the options that the user wrote.
        layout: the layout; ``None`` if it is invalid.
        model: the model's spec; ``None`` if its package is missing, or the model type is unknown.
        schedule: the pipeline schedule; ``None`` without a pipeline, or if its package is missing.
        pipeline: the pipeline package's spec; ``None`` without a pipeline, or if that package is missing.
        entries: entries of the model's ``config.json``; empty if the file is not available.
        rollout: the rollout options; ``None`` for an algorithm that samples no completions.
    """

    config: Any
    role: str
    explicit: frozenset[str]
    layout: Layout | None = None
    model: ModelSpec | None = None
    schedule: ScheduleSpec | None = None
    pipeline: PipelineSpec | None = None
    entries: Mapping[str, Any] = field(default_factory=dict)
    rollout: RolloutConfig | None = None


@dataclass(frozen=True)
class EnginePreview:
    """An engine's view of a configuration in a dry run.

    Attributes:
        problems: settings that cannot be honoured, as found / allowed / fix sentences.
        decisions: changes to the configuration that do not depend on the device.
    """

    problems: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()
