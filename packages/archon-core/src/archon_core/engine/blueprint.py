"""A model before there is any storage: what a configuration asks for, on the meta device, and how it will be cut.

Nothing here needs another process, except that all of them must find the same configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from archon_core.config.schema import EngineConfig
from archon_core.distributed.failing_together import failing_together
from archon_core.distributed.ranks import Ranks
from archon_core.engine.effective import EffectiveConfig
from archon_core.engine.stages import plan_stages
from archon_core.errors import ConfigError
from archon_core.layout import Layout, ParallelDims
from archon_core.layout.model_sizes import check_sizes
from archon_core.models.capabilities import check_capabilities
from archon_core.models.expert_builder import expert_builder
from archon_core.models.hf_config import load_hf_config
from archon_core.models.parallel_plan import ParallelPlan
from archon_core.models.parameter_names import weight_shapes
from archon_core.models.stage import Stage
from archon_core.models.weight_map import ResolvedMap
from archon_core.parallel.activation_checkpointing import blocks_of
from archon_core.parallel.context import check_context_plan
from archon_core.parallel.sizes import check_refusals, sharded_extents
from archon_core.parallel.tensor import check_tensor_plan
from archon_core.pipeline import StagePlan
from archon_core.plugins.registry import Registry
from archon_core.plugins.specs import LoadedModel, ModelSpec, ScheduleSpec, TrainEngineSpec
from archon_core.protocols import ModelArguments, MoEBuilder


@dataclass(frozen=True)
class Blueprint:
    """What a module will be.

    Attributes:
        spec: the model spec.
        model: its parts.
        hf_config: the checkpoint's configuration, as ``transformers`` reads it.
        arguments: the model's own sizes and options.
        dtype: in which weights are kept.
        dims: sizes of all axes.
        parallel: what the model's modules are.
        whole: the whole model on the meta device, as nothing has sharded it.
        weights: which Hugging Face tensor holds which of its parameters.
        stages: how it is cut for a pipeline; ``None`` without one.
        schedule: of the pipeline; ``None`` without one.
        expert_builder: who builds its experts; ``None`` for a model without.
    """

    spec: ModelSpec
    model: LoadedModel
    hf_config: Any
    arguments: ModelArguments
    dtype: torch.dtype
    dims: ParallelDims
    parallel: ParallelPlan
    whole: nn.Module
    weights: ResolvedMap
    stages: StagePlan | None = None
    schedule: ScheduleSpec | None = None
    expert_builder: MoEBuilder | None = None

    def build(self, stage: Stage | None = None) -> nn.Module:
        """The module, or one stage of it, on the meta device."""
        return _build(self.model, self.arguments, self.dtype, self.expert_builder, stage)

    @cached_property
    def block_names(self) -> list[str]:
        """Names of all blocks of the model."""
        return [name for name, _ in blocks_of(self.whole, self.parallel)]


def draw_blueprint(
    config: EngineConfig, effective: EffectiveConfig, *, layout: Layout, registry: Registry, role: str
) -> Blueprint:
    """Find the model that ``config`` names and plan how ``layout`` cuts it. Collective.

    Raises:
        ConfigError, ModelError, UnknownNameError, LayoutError: as ``assembly.assemble`` says.
    """
    _check_source(config, role)
    with failing_together(Ranks.of_process_group()):
        hf_config = load_hf_config(config.model_config if config.model_config is not None else config.path)
    engine = registry.get(TrainEngineSpec, layout.backend)
    name = engine.chosen_model(config.archon.model, option=f"{role}.archon.model")
    spec = registry.model_for(hf_config.model_type, name)
    check_capabilities(spec, layout, critic=config.is_critic, role=role)
    model = spec.load()
    arguments = model.arguments.from_hf_config(hf_config, critic=config.is_critic)
    _refuse_dropout(config, arguments, role)
    experts = expert_builder(spec, registry, config.archon, role=role)
    dtype = getattr(torch, effective.master_dtype)
    whole = _build(model, arguments, dtype, experts)
    parallel = model.parallel_plan(arguments)
    option = f"{role}.backend"
    dims = layout.parallel_dims(moe=model.has_experts, option=option)
    _check_plan(whole, parallel, layout, option=option)
    stages: StagePlan | None = None
    schedule: ScheduleSpec | None = None
    if dims.pp > 1:
        schedule = registry.get(ScheduleSpec, config.archon.pp_schedule)
        stages = plan_stages(
            whole, parallel, n_ranks=dims.pp, schedule=schedule, options=config.archon, registry=registry, role=role
        )
    return Blueprint(
        spec=spec,
        model=model,
        hf_config=hf_config,
        arguments=arguments,
        dtype=dtype,
        dims=dims,
        parallel=parallel,
        whole=whole,
        weights=model.weight_map(arguments).resolve(weight_shapes(whole)),
        stages=stages,
        schedule=schedule,
        expert_builder=experts,
    )


def _build(
    model: LoadedModel,
    arguments: ModelArguments,
    dtype: torch.dtype,
    experts: MoEBuilder | None,
    stage: Stage | None = None,
) -> nn.Module:
    with torch.device("meta"):
        return model.build(arguments, stage, experts=experts).to(dtype)


def _check_source(config: EngineConfig, role: str) -> None:
    if (config.path is None) == (config.model_config is None):
        found = "neither" if config.path is None else "both"
        raise ConfigError(
            f"{role}.path and {role}.model_config: found {found}; exactly one says what to build: a checkpoint's "
            "path, or a Hugging Face configuration written in place (with random weights)"
        )


def _refuse_dropout(config: EngineConfig, arguments: ModelArguments, role: str) -> None:
    dropout = getattr(arguments, "attention_dropout", 0.0)
    if dropout and not config.disable_dropout:
        raise ConfigError(
            f"{role}.disable_dropout: found false with attention_dropout {dropout} in the model's configuration; this "
            f"model applies no dropout; set {role}.disable_dropout=true"
        )


def _check_plan(whole: nn.Module, plan: ParallelPlan, layout: Layout, *, option: str) -> None:
    """Check that a whole module can be sharded as ``layout`` says. Raises LayoutError, ModelError."""
    check_refusals(plan, layout, option=option)
    check_sizes(sharded_extents(whole, plan), layout, option=option)
    if layout.dims["c"] > 1:
        check_context_plan(whole, plan)
    if layout.dims["t"] > 1:
        check_tensor_plan(whole, plan)
