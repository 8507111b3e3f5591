"""The plugin interface: hooks to implement, specs to return, and the registry that finds them.

A plugin module needs only this package::

    from archon_core.plugins import ModelSpec, hookimpl

    ARCHON_PLUGIN_API = "1.0"

    @hookimpl
    def archon_models():
        return [ModelSpec(name="my_model", target="my_package.model:MyModel", ...)]

and an entry point of the group ``archon`` that names it.
"""

from archon_core.contracts.adapters import AdapterSpec
from archon_core.contracts.data import DatasetSpec, RewardSpec
from archon_core.contracts.engine import TrainEngineSpec
from archon_core.contracts.environments import EnvironmentSpec
from archon_core.contracts.launching import LauncherSpec
from archon_core.contracts.loggers import LoggerSpec
from archon_core.contracts.loss import PolicyLossSpec
from archon_core.contracts.model import Capability, LoadedModel, ModelSpec
from archon_core.contracts.moe import MoESpec
from archon_core.contracts.pipeline import PipelineSpec, ScheduleSpec
from archon_core.contracts.rollout import InferenceEngineSpec
from archon_core.contracts.server_registry import ServerRegistrySpec
from archon_core.contracts.serving import ServerDriverSpec
from archon_core.contracts.spec import ConfigSection, Spec
from archon_core.contracts.tool_calls import ReasoningParserSpec, ToolParserSpec, ToolSpec
from archon_core.contracts.train import AlgorithmSpec, DialectSpec
from archon_core.contracts.weight_transport import WeightTransportSpec
from archon_core.contracts.workflows import WorkflowSpec
from archon_core.plugins.hookspecs import hookimpl
from archon_core.plugins.kinds import SPEC_TYPES, CommandSpec
from archon_core.plugins.loader import PLUGIN_API
from archon_core.plugins.registry import Registry, build_registry, registry
from archon_core.plugins.status import PluginStatus

__all__ = [
    "PLUGIN_API",
    "SPEC_TYPES",
    "AdapterSpec",
    "AlgorithmSpec",
    "Capability",
    "CommandSpec",
    "ConfigSection",
    "DatasetSpec",
    "DialectSpec",
    "EnvironmentSpec",
    "InferenceEngineSpec",
    "LauncherSpec",
    "LoadedModel",
    "LoggerSpec",
    "MoESpec",
    "ModelSpec",
    "PipelineSpec",
    "PluginStatus",
    "PolicyLossSpec",
    "ReasoningParserSpec",
    "Registry",
    "RewardSpec",
    "ScheduleSpec",
    "ServerDriverSpec",
    "ServerRegistrySpec",
    "Spec",
    "ToolParserSpec",
    "ToolSpec",
    "TrainEngineSpec",
    "WeightTransportSpec",
    "WorkflowSpec",
    "build_registry",
    "hookimpl",
    "registry",
]
