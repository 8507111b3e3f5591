"""The plugin interface: hooks to implement, specs to return, and the registry that finds them.

A plugin module needs only this package::

    from archon_core.plugins import ModelSpec, hookimpl

    ARCHON_PLUGIN_API = "1.0"

    @hookimpl
    def archon_models():
        return [ModelSpec(name="my_model", target="my_package.model:MyModel", ...)]

and an entry point of the group ``archon`` that names it.
"""

from archon_core.plugins.hookspecs import hookimpl
from archon_core.plugins.loader import PLUGIN_API
from archon_core.plugins.registry import Registry, build_registry, registry
from archon_core.plugins.specs import (
    SPEC_TYPES,
    AlgorithmSpec,
    Capability,
    CommandSpec,
    ConfigSection,
    DatasetSpec,
    InferenceEngineSpec,
    LauncherSpec,
    LoadedModel,
    ModelSpec,
    MoESpec,
    PipelineSpec,
    RewardSpec,
    ScheduleSpec,
    Spec,
    TrainEngineSpec,
    WeightTransportSpec,
)
from archon_core.plugins.status import PluginStatus

__all__ = [
    "PLUGIN_API",
    "SPEC_TYPES",
    "AlgorithmSpec",
    "Capability",
    "CommandSpec",
    "ConfigSection",
    "DatasetSpec",
    "InferenceEngineSpec",
    "LauncherSpec",
    "LoadedModel",
    "MoESpec",
    "ModelSpec",
    "PipelineSpec",
    "PluginStatus",
    "Registry",
    "RewardSpec",
    "ScheduleSpec",
    "Spec",
    "TrainEngineSpec",
    "WeightTransportSpec",
    "build_registry",
    "hookimpl",
    "registry",
]
