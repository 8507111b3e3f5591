"""The plan of a model without storage: the module on the meta device, and how the layout shards it.

Reading the configuration is collective, and with context ranks on several machines so is choosing their style
(``assembly.context``). Everything else works without other processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from archon_core.contracts.adapters import Adapter
from archon_core.contracts.engine import Selection
from archon_core.contracts.model import LoadedModel, ModelArguments
from archon_core.contracts.module import attention_dropout
from archon_core.contracts.moe import MoEBuilder
from archon_core.contracts.pipeline import StagePlan
from archon_core.errors import ConfigError
from archon_core.layout import Layout, ParallelDims
from archon_core.layout.model_sizes import check_sizes
from archon_core.models.parallel_plan import ParallelPlan
from archon_core.models.stage import Stage
from archon_core.models.weight_map import ResolvedMap
from archon_engine.assembly.context import ContextPlan, plan_context
from archon_engine.assembly.stages import plan_stages
from archon_engine.models.capabilities import check_capabilities
from archon_engine.models.hf_config import read_source
from archon_engine.models.parameter_names import weight_shapes
from archon_engine.nn.rotary import RotaryEmbedding
from archon_engine.options.archon import ArchonEngineConfig
from archon_engine.options.effective import EffectiveConfig
from archon_engine.options.routing_replay import replay_without_experts
from archon_engine.options.shared_prefixes import rotation_refusal
from archon_engine.parallel.plan_checks import (
    check_context_plan,
    check_refusals,
    check_tensor_plan,
    sharded_extents,
)
from archon_engine.parallel.units import blocks_of


@dataclass(frozen=True)
class Blueprint:
    """A planned model without storage.

    Attributes:
        selection: the specs chosen for the engine.
        model: the imported parts of the model's spec.
        hf_config: the checkpoint's configuration, as ``transformers`` reads it.
        arguments: the model's sizes and options.
        dtype: dtype of stored weights that are trained.
        frozen_dtype: dtype of stored weights beside adapters.
        dims: sizes of all axes.
        parallel: the model's parallel plan.
        whole: the whole, unsharded model on the meta device.
        weights: the resolved map between its weights and Hugging Face tensors.
        context: how context ranks share attention.
        stages: the pipeline stages; ``None`` without a pipeline.
        expert_builder: builds its experts; ``None`` for a model without experts.
        adapter: its adapters; ``None`` to train its own weights.
        adapter_weights: the resolved map of the adapters' parameters.
    """

    selection: Selection
    model: LoadedModel
    hf_config: Any
    arguments: ModelArguments
    dtype: torch.dtype
    frozen_dtype: torch.dtype
    dims: ParallelDims
    parallel: ParallelPlan
    whole: nn.Module
    weights: ResolvedMap
    context: ContextPlan = field(default_factory=ContextPlan)
    stages: StagePlan | None = None
    expert_builder: MoEBuilder | None = None
    adapter: Adapter | None = None
    adapter_weights: ResolvedMap | None = None

    def build(self, stage: Stage | None = None) -> nn.Module:
        """The module, or one stage of it, on the meta device."""
        module = _build(self.model, self.arguments, self.dtype, self.expert_builder, stage)
        if self.adapter is not None:
            _attach(self.adapter, module, self.parallel, self.weights, self.frozen_dtype)
        return module

    @cached_property
    def stored_apart(self) -> ResolvedMap:
        """The map of the model's own weights, and of the adapters' parameters if it has some."""
        weights, added = self.weights, self.adapter_weights
        if added is None:
            return weights
        return replace(
            weights,
            shapes={**weights.shapes, **added.shapes},
            hf_shapes={**weights.hf_shapes, **added.hf_shapes},
            links_of_ours={**weights.links_of_ours, **added.links_of_ours},
            links_of_hf={**weights.links_of_hf, **added.links_of_hf},
        )

    @cached_property
    def block_names(self) -> list[str]:
        """Names of all blocks of the model."""
        return [name for name, _ in blocks_of(self.whole, self.parallel)]


def build_blueprint(
    config: ArchonEngineConfig, effective: EffectiveConfig, *, layout: Layout, selection: Selection, role: str
) -> Blueprint:
    """Plan the model that ``config`` names for ``layout``. Collective.

    Raises:
        ConfigError, ModelError, LayoutError: see ``assembled.assemble``.
    """
    hf_config = read_source(config, role=role)
    spec, schedule = selection.model, selection.schedule
    assert spec is not None, "this engine's spec names a model_type, so a model was chosen"
    if refusal := replay_without_experts(config, spec, role=role):
        raise ConfigError(refusal)
    shares = config.enable_tree_training
    check_capabilities(spec, layout, critic=config.is_critic, shares_prefixes=shares, role=role)
    model = spec.load()
    arguments = model.arguments.from_hf_config(hf_config, critic=config.is_critic)
    _refuse_dropout(config, arguments, role)
    experts = None if selection.experts is None else selection.experts.load()(config.archon)
    dtype = getattr(torch, effective.master_dtype)
    # Passes read frozen weights in the compute dtype in any case, so a wider copy would only take memory.
    frozen_dtype = dtype if config.archon.master_dtype else getattr(torch, effective.compute_dtype)
    whole = _build(model, arguments, dtype, experts)
    if shares:
        _refuse_rotations_by_length(whole, role)
    parallel = model.parallel_plan(arguments)
    weights = model.weight_map(arguments).resolve(weight_shapes(whole))
    adapter, adapter_weights = None, None
    if selection.adapter is not None:
        adapter = selection.adapter.load()(config, role=role)
        _attach(adapter, whole, parallel, weights, frozen_dtype)
        added = {name: shape for name, shape in weight_shapes(whole).items() if name not in weights.shapes}
        adapter_weights = adapter.weight_map(weights, added)
        parallel = adapter.extend(parallel)
    option = f"{role}.backend"
    dims = layout.parallel_dims(moe=model.has_experts, option=option)
    _check_plan(whole, parallel, layout, option=option)
    context = plan_context(config, whole, parallel, dims, role=role)
    stages: StagePlan | None = None
    if schedule is not None:
        assert selection.pipeline is not None, "a selection with a schedule has a pipeline"
        stages = plan_stages(
            whole,
            parallel,
            n_ranks=dims.pp,
            schedule=schedule,
            pipeline=selection.pipeline,
            options=config.archon,
            role=role,
        )
    return Blueprint(
        selection=selection,
        model=model,
        hf_config=hf_config,
        arguments=arguments,
        dtype=dtype,
        frozen_dtype=frozen_dtype,
        dims=dims,
        parallel=parallel,
        whole=whole,
        weights=weights,
        context=context,
        stages=stages,
        expert_builder=experts,
        adapter=adapter,
        adapter_weights=adapter_weights,
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


def _attach(
    adapter: Adapter, module: nn.Module, plan: ParallelPlan, weights: ResolvedMap, frozen_dtype: torch.dtype
) -> None:
    """Add adapters to a module on the meta device, in place, and store its own weights in ``frozen_dtype``."""
    adapter.attach(module, plan, weights)
    for parameter in module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(frozen_dtype)


def _refuse_dropout(config: ArchonEngineConfig, arguments: ModelArguments, role: str) -> None:
    dropout = attention_dropout(arguments)
    if dropout and not config.disable_dropout:
        raise ConfigError(
            f"{role}.disable_dropout: found false with attention_dropout {dropout} in the model's configuration; this "
            f"model applies no dropout; set {role}.disable_dropout=true"
        )


def _refuse_rotations_by_length(whole: nn.Module, role: str) -> None:
    for part in whole.modules():
        if isinstance(part, RotaryEmbedding) and part.length_dependent_above is not None:
            raise ConfigError(rotation_refusal(part.arguments.kind, part.length_dependent_above, role=role))


def _check_plan(whole: nn.Module, plan: ParallelPlan, layout: Layout, *, option: str) -> None:
    """Check that ``layout`` can shard a whole module. Raises LayoutError, ModelError."""
    check_refusals(plan, layout, option=option)
    check_sizes(sharded_extents(whole, plan), layout, option=option)
    if layout.dims["c"] > 1:
        check_context_plan(whole, plan)
    if layout.dims["t"] > 1:
        check_tensor_plan(whole, plan)
