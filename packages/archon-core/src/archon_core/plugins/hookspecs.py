"""The hooks that a plugin may implement, one per kind of spec.

A plugin is a light module named by an entry point of the group ``archon``. Its functions, marked with
``hookimpl`` and named as here, return specs, and import nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    # pluggy looks at every name of this module, once per plugin.
    from archon_core.contracts.data import DatasetSpec, RewardSpec
    from archon_core.contracts.engine import TrainEngineSpec
    from archon_core.contracts.environments import EnvironmentSpec
    from archon_core.contracts.launching import LauncherSpec
    from archon_core.contracts.loggers import LoggerSpec
    from archon_core.contracts.loss import PolicyLossSpec
    from archon_core.contracts.model import ModelSpec
    from archon_core.contracts.moe import MoESpec
    from archon_core.contracts.pipeline import PipelineSpec, ScheduleSpec
    from archon_core.contracts.rollout import InferenceEngineSpec
    from archon_core.contracts.server_registry import ServerRegistrySpec
    from archon_core.contracts.serving import ServerDriverSpec
    from archon_core.contracts.tool_calls import ReasoningParserSpec, ToolParserSpec, ToolSpec
    from archon_core.contracts.train import AlgorithmSpec, DialectSpec
    from archon_core.contracts.weight_transport import WeightTransportSpec
    from archon_core.contracts.workflows import WorkflowSpec
    from archon_core.plugins.kinds import CommandSpec

PROJECT_NAME = "archon"
"""pluggy's project name, and the group of the entry points."""

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec
def archon_models() -> Iterable[ModelSpec]:
    """Model architectures."""


@hookspec
def archon_schedules() -> Iterable[ScheduleSpec]:
    """Pipeline schedules."""


@hookspec
def archon_pipelines() -> Iterable[PipelineSpec]:
    """Pipelines: split models into stages and run schedules."""


@hookspec
def archon_moe() -> Iterable[MoESpec]:
    """Mixture-of-experts blocks."""


@hookspec
def archon_train_engines() -> Iterable[TrainEngineSpec]:
    """Training engines, named by the backend part of a layout."""


@hookspec
def archon_inference_engines() -> Iterable[InferenceEngineSpec]:
    """Rollout engines, named by the backend part of a layout."""


@hookspec
def archon_server_drivers() -> Iterable[ServerDriverSpec]:
    """Kinds of inference server, named by the backend part of a layout."""


@hookspec
def archon_weight_transports() -> Iterable[WeightTransportSpec]:
    """Transports of weights to inference servers."""


@hookspec
def archon_registries() -> Iterable[ServerRegistrySpec]:
    """Registries in which inference servers announce themselves."""


@hookspec
def archon_launchers() -> Iterable[LauncherSpec]:
    """Launchers of a run's processes."""


@hookspec
def archon_loggers() -> Iterable[LoggerSpec]:
    """Loggers of a run's metrics."""


@hookspec
def archon_algorithms() -> Iterable[AlgorithmSpec]:
    """Training algorithms."""


@hookspec
def archon_policy_losses() -> Iterable[PolicyLossSpec]:
    """Policy losses for reinforcement learning."""


@hookspec
def archon_rewards() -> Iterable[RewardSpec]:
    """Reward functions."""


@hookspec
def archon_workflows() -> Iterable[WorkflowSpec]:
    """Workflows: how a record becomes trajectories to train on."""


@hookspec
def archon_datasets() -> Iterable[DatasetSpec]:
    """Data sets."""


@hookspec
def archon_environments() -> Iterable[EnvironmentSpec]:
    """Environments of the workflow ``environment``."""


@hookspec
def archon_tools() -> Iterable[ToolSpec]:
    """Tools that models may call."""


@hookspec
def archon_tool_parsers() -> Iterable[ToolParserSpec]:
    """Formats of tool calls."""


@hookspec
def archon_reasoning_parsers() -> Iterable[ReasoningParserSpec]:
    """Formats of reasoning."""


@hookspec
def archon_commands() -> Iterable[CommandSpec]:
    """Subcommands of ``archon``."""


@hookspec
def archon_dialects() -> Iterable[DialectSpec]:
    """Readers for configuration files of other programs."""
