"""Selects engine, model, schedule, pipeline, experts and adapter for a role among the installed ones.

Pure functions of the registry, which import none of the selected parts. Dry runs select one part at a time to report
every missing package; ``assemble`` selects all of them.
"""

from __future__ import annotations

from typing import Any

from archon_core.contracts.adapters import AdapterSpec
from archon_core.contracts.engine import Selection, TrainEngineSpec
from archon_core.contracts.model import ModelSpec
from archon_core.contracts.moe import MoESpec
from archon_core.contracts.pipeline import PIPELINE, PipelineSpec, ScheduleSpec
from archon_core.errors import ConfigError, UnknownNameError
from archon_core.layout import Layout
from archon_core.plugins.clashes import explain_several_builders
from archon_core.plugins.hints import explain_none
from archon_core.plugins.registry import Registry


def select(config: Any, layout: Layout, registry: Registry, *, model_type: str, role: str) -> Selection:
    """Select all parts of an engine.

    Args:
        config: the section of the configuration that describes the model (``EngineConfig``).
        layout: the layout of the model.
        registry: the installed specs.
        model_type: ``model_type`` of the model's Hugging Face configuration.
        role: the section's name, for messages.

    Raises:
        UnknownNameError: a part is not installed; the message names its package.
        ConfigError: the choice is ambiguous, or the user chose another model than the engine runs.
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
        select_adapter(config, registry, role=role),
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
            f"engine {engine.name!r}: found a layout with p, but the engine has no option for a schedule; use a layout "
            "without p"
        )
    return registry.get(ScheduleSpec, name)


def select_experts(
    model: ModelSpec, registry: Registry, *, asked: str | None = None, option: str | None = None
) -> MoESpec | None:
    """The package that builds the experts of a model; ``None`` for a model without experts.

    Args:
        asked: the configured name; ``None`` selects the only one installed.
        option: the option of the name, for messages; ``None`` without a configuration.

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


def select_adapter(config: Any, registry: Registry, *, role: str) -> AdapterSpec | None:
    """The adapter that an option of ``config`` switches on; ``None`` if none does.

    Raises:
        ConfigError: several are switched on.
    """
    chosen = [spec for spec in registry.all(AdapterSpec) if getattr(config, spec.option, False)]
    if len(chosen) > 1:
        found = " and ".join(f"{role}.{spec.option}" for spec in chosen)
        raise ConfigError(f"{found}: found true; a model has one kind of adapter; switch the others off")
    return chosen[0] if chosen else None
