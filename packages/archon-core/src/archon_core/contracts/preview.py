"""Dry runs of engines and algorithms: what is known before any process starts, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archon_core.contracts.data import DatasetSpec
    from archon_core.contracts.decisions import Decision
    from archon_core.contracts.model import ModelSpec
    from archon_core.contracts.pipeline import PipelineSpec, ScheduleSpec
    from archon_core.contracts.rollout import RolloutConfig
    from archon_core.contracts.train import AlgorithmSpec
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


@dataclass(frozen=True)
class RunOutline:
    """A run before any process starts, for the preview of its algorithm.

    Attributes:
        config: the whole configuration.
        algorithm: the algorithm's spec.
        explicit: dotted names of the options that the user wrote.
        dataset: the data set's spec; ``None`` if its package is missing.
        reward_role: section of the model that the reward runs; empty for none, ``None`` if the reward is unknown.
    """

    config: Any
    algorithm: AlgorithmSpec
    explicit: frozenset[str] = frozenset()
    dataset: DatasetSpec | None = None
    reward_role: str | None = ""


@dataclass(frozen=True)
class RunPreview:
    """An algorithm's view of a configuration before the run.

    Attributes:
        problems: settings with which the run cannot train, as found / allowed / fix sentences.
        missing: settings that the run needs and the file leaves out, likewise. A file in a dialect may leave them to
            the other program's script, so they are no errors of such a file; the run does not start without them.
        decisions: what the run does with options that it does not use, changes, or understands in one of several ways.
            They are recorded with the run.
        unused: options and sections without effect in this run, all of which differ from their defaults. No
            other check reads them.
    """

    problems: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()
    unused: frozenset[str] = frozenset()
