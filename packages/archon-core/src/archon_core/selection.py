"""The one choice of engine, model, schedule, pipeline and experts for a role, among what is installed.

Pure functions over the registry; they import none of what they choose. Dry runs take the choices one by one, so that
each missing package is reported; ``assemble`` takes all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archon_core.contracts.engine import TrainEngineSpec
from archon_core.contracts.model import ModelSpec
from archon_core.contracts.moe import MoESpec
from archon_core.contracts.pipeline import PIPELINE, PipelineSpec, ScheduleSpec
from archon_core.errors import ConfigError, UnknownNameError
from archon_core.layout import Layout
from archon_core.plugins.clashes import explain_several_builders
from archon_core.plugins.hints import explain_none
from archon_core.plugins.registry import Registry


@dataclass(frozen=True)
class Selection:
    """The specs that one engine is assembled from.

    Attributes:
        engine: the training engine.
        model: the model architecture; ``None`` for an engine that has its own models.
        schedule: of the pipeline; ``None`` without one.
        pipeline: cuts the model into stages and runs them; ``None`` without a pipeline.
        experts: builds mixture-of-experts blocks; ``None`` for a model without experts.
    """

    engine: TrainEngineSpec
    model: ModelSpec | None = None
    schedule: ScheduleSpec | None = None
    pipeline: PipelineSpec | None = None
    experts: MoESpec | None = None


def select(config: Any, layout: Layout, registry: Registry, *, model_type: str, role: str) -> Selection:
    """Choose everything that an engine needs.

    Args:
        config: the section of the configuration that describes the model (``EngineConfig``).
        layout: how the model is sharded.
        registry: what is installed.
        model_type: of the model's Hugging Face configuration.
        role: the section's name, for messages.

    Raises:
        UnknownNameError: a part is not installed, with the package that has it.
        ConfigError: several could be meant and none is chosen, or the engine runs another model than was chosen.
        PluginError: more than one plugin provides a part.
    """
    engine = registry.get(TrainEngineSpec, layout.backend)
    model = select_model(config, engine, registry, model_type=model_type, role=role)
    is_pipelined = layout.dims["p"] > 1
    return Selection(
        engine,
        model,
        select_schedule(config, engine, registry) if is_pipelined else None,
        registry.get(PipelineSpec, PIPELINE) if is_pipelined else None,
        select_experts(model, registry, asked=engine.asked(config, "moe"), option=engine.option("moe", role)),
    )


def select_model(config: Any, engine: TrainEngineSpec, registry: Registry, *, model_type: str, role: str) -> ModelSpec:
    """The architecture for ``model_type``. Raises as ``select`` does."""
    name = engine.chosen_model(engine.asked(config, "model"), option=engine.option("model", role) or "the model")
    return registry.model_for(model_type, name)


def select_schedule(config: Any, engine: TrainEngineSpec, registry: Registry) -> ScheduleSpec:
    """The schedule of a pipeline. Raises as ``select`` does."""
    name = engine.asked(config, "schedule")
    if name is None:
        raise ConfigError(
            f"engine {engine.name!r} has no option that names a pipeline schedule; use a layout without p"
        )
    return registry.get(ScheduleSpec, name)


def select_experts(
    model: ModelSpec, registry: Registry, *, asked: str | None = None, option: str | None = None
) -> MoESpec | None:
    """Who builds the experts of a model; ``None`` for a model without experts.

    Args:
        asked: the name that a configuration chooses; ``None`` takes the only one installed.
        option: the option that chooses, for messages; ``None`` where no configuration does.

    Raises:
        UnknownNameError, ConfigError: as ``select`` does.
    """
    if "moe" not in model.needs:
        return None
    if asked is not None:
        return registry.get(MoESpec, asked)
    installed = registry.all(MoESpec)
    if not installed:
        raise UnknownNameError(f"model {model.name!r} has experts. {explain_none(MoESpec.kind, registry.plugins)}")
    if len(installed) > 1:
        raise ConfigError(explain_several_builders([spec.name for spec in installed], option))
    return installed[0]
