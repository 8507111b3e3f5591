"""All kinds of spec, and commands: the kind that core itself runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from archon_core.contracts.adapters import AdapterSpec
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
from archon_core.contracts.spec import Spec
from archon_core.contracts.tool_calls import ReasoningParserSpec, ToolParserSpec, ToolSpec
from archon_core.contracts.train import AlgorithmSpec, DialectSpec
from archon_core.contracts.weight_transport import WeightTransportSpec
from archon_core.contracts.workflows import WorkflowSpec


@dataclass(frozen=True)
class CommandSpec(Spec):
    """A subcommand of ``archon``. ``target`` names a function or ``typer.Typer``; it is imported when called."""

    kind: ClassVar[str] = "command"
    hook: ClassVar[str] = "archon_commands"


SPEC_TYPES: tuple[type[Spec], ...] = (
    ModelSpec,
    ScheduleSpec,
    PipelineSpec,
    MoESpec,
    AdapterSpec,
    TrainEngineSpec,
    InferenceEngineSpec,
    ServerDriverSpec,
    WeightTransportSpec,
    ServerRegistrySpec,
    LauncherSpec,
    LoggerSpec,
    AlgorithmSpec,
    PolicyLossSpec,
    RewardSpec,
    WorkflowSpec,
    DatasetSpec,
    EnvironmentSpec,
    ToolSpec,
    ToolParserSpec,
    ReasoningParserSpec,
    CommandSpec,
    DialectSpec,
)
