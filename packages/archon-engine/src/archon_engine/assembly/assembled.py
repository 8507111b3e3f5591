"""Turns a blueprint into a module with weights: builds this process's part, shards, materialises and fills it.

All steps before the last two work on shapes only, so no process ever holds more than its part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine import Selection
from archon_core.contracts.model import CausalModule
from archon_core.contracts.module import model_decisions
from archon_core.contracts.pipeline import PipelineParts
from archon_core.errors import ConfigError
from archon_core.layout import Layout, ParallelDims
from archon_core.models.name_pattern import matches_any
from archon_core.models.parallel_plan import layer_number
from archon_core.ranks.failing_together import failing_together
from archon_core.ranks.ranks import Ranks
from archon_engine.assembly.blocks import Blocks, prepare_blocks
from archon_engine.assembly.blueprint import Blueprint, build_blueprint
from archon_engine.assembly.context import context_decisions
from archon_engine.assembly.experts import ExpertBlocks
from archon_engine.assembly.tied_copies import TiedCopies
from archon_engine.assembly.weight_loading import load_weights
from archon_engine.checkpoint.adapter_files import load_adapter
from archon_engine.mesh import (
    Meshes,
    build_meshes,
    check_world,
    device_of_rank,
)
from archon_engine.models.hf_config import checkpoint_folder
from archon_engine.models.initialize import initialize_weights, materialize_empty
from archon_engine.models.parameter_names import named_weights, owners
from archon_engine.models.staged import StagedModule, stages_of
from archon_engine.nn.attention import attention_settings, check_attention_backend, set_attention_backend
from archon_engine.options.archon import ArchonEngineConfig
from archon_engine.options.combinations import refuse_when_strict, shown
from archon_engine.options.effective import EffectiveConfig
from archon_engine.parallel.fsdp import (
    FsdpGroups,
    apply_fsdp,
    even_dim,
    expert_modules,
)
from archon_engine.parallel.shards import local_part
from archon_engine.parallel.tensor import apply_tensor_parallel


@dataclass(frozen=True)
class Assembled:
    """A sharded module with its weights.

    Attributes:
        plan: the blueprint from which it was built.
        module: on its device, with its weights.
        parameters: global name -> sharded parameter; a tied parameter once, under its first name. Looked up only once,
            because FSDP2 replaces these by unsharded parameters while a forward pass runs.
        named_weights: parameters and persistent buffers; a tied parameter under each of its names.
        groups: the FSDP2 groups; ``None`` for an unsharded module that needs no cast.
        blocks: compilation and activation checkpointing of its blocks.
        meshes: the meshes over which it is sharded; ``None`` for an unsharded module that needs no cast.
        pipeline: this process's part of a pipeline; ``None`` without a pipeline.
        tied: tied weights with copies on two stages; ``None`` if there are none.
        experts: the mixture-of-experts blocks of this process; ``None`` for a model without experts.
    """

    plan: Blueprint
    module: CausalModule
    parameters: Mapping[str, nn.Parameter]
    named_weights: Mapping[str, Tensor]
    groups: FsdpGroups | None
    blocks: Blocks
    meshes: Meshes | None
    pipeline: PipelineParts | None = None
    tied: TiedCopies | None = None
    experts: ExpertBlocks | None = None

    @property
    def copies(self) -> Mapping[str, str]:
        """Name of each tied copy on this process -> name of its original."""
        return {} if self.tied is None else self.tied.held

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Persistent buffers by name. They belong to the training state, and every process with their module holds them
        whole."""
        return {name: w for name, w in self.named_weights.items() if not isinstance(w, nn.Parameter)}

    @property
    def trained_weights(self) -> dict[str, Tensor]:
        """The weights that training changes, without tied copies: those of a training state."""
        if self.plan.adapter_weights is not None:
            return {name: self.parameters[name] for name in self.parameters if name in self.plan.adapter_weights.shapes}
        return self.logical_parameters | self.buffers

    @property
    def logical_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters without tied copies, so that the processes of a pipeline together hold each parameter once."""
        return {name: parameter for name, parameter in self.parameters.items() if name not in self.copies}


def assemble(
    config: ArchonEngineConfig,
    effective: EffectiveConfig,
    *,
    layout: Layout,
    selection: Selection,
    role: str,
    seed: int,
) -> tuple[Assembled, list[Decision]]:
    """Build the model that ``config`` names. Returns it with the decisions.

    Collective if the layout has more than one rank. If ``needs_meshes``, the process group must exist.

    Args:
        config: the section of the configuration that describes the model.
        effective: the options in effect.
        layout: the layout of the model.
        selection: the chosen model, schedule, pipeline and experts.
        role: the section's name, for messages.
        seed: the run's seed, for weights that the checkpoint lacks.

    Raises:
        ConfigError: not exactly one of ``path`` and ``model_config`` is set, an option does not fit the model, or
            ``strict`` forbids a change that context ranks or tensor ranks need.
        ModelError: the model's configuration is unreadable or unsupported, or its architecture has no value head.
        LayoutError: the layout does not fit the model or the number of processes.
        WeightsError: the checkpoint does not fit the model.
    """
    plan = build_blueprint(config, effective, layout=layout, selection=selection, role=role)
    # Known before anything is built, so ``strict`` need not wait for a checkpoint.
    of_context = context_decisions(plan.context, config, role=role)
    if refusal := refuse_when_strict(config, of_context, role=role):
        raise ConfigError(refusal)
    check_world(plan.dims, option=f"{role}.backend")
    meshes: Meshes | None = None
    if needs_meshes(plan.dims, effective):
        meshes = build_meshes(
            plan.dims,
            effective.device,
            experts=plan.expert_builder is not None,
            context=plan.context.split,
            in_order=plan.context.in_order,
        )
    module = _build_stages(plan, meshes)
    if effective.attn_type is not None:
        compute_dtype = getattr(torch, effective.compute_dtype)
        head_dim = plan.arguments.head_dim
        backend = check_attention_backend(
            effective.attn_type,
            effective.device,
            compute_dtype,
            head_dim,
            attention_settings(module),
            option=f"{role}.archon.attn_type",
        )
        set_attention_backend(module, backend)
    if meshes is not None and meshes.tp is not None:
        for stage in stages_of(module):
            apply_tensor_parallel(stage, plan.parallel, meshes.tp)
    # The order is fixed: tensor and expert ranks shard parameters before FSDP2 shards the parts that they leave.
    # ``assembly.blocks`` describes the steps in between.
    experts = None if plan.expert_builder is None else _shard_experts(module, plan, meshes)
    uneven = _uneven_expert_decisions(module, plan, meshes, role) if meshes is not None else []
    blocks = prepare_blocks(module, plan.parallel, effective, role=role, among=plan.block_names)
    groups = [] if meshes is None else [_shard_parameters(s, plan, effective, meshes) for s in stages_of(module)]
    # FSDP2 copies parameters to the device block by block, but buffers are used in place.
    home = "cpu" if effective.offload_params else device_of_rank()
    materialize_empty(module, home, buffer_device=device_of_rank())
    parameters = {name: parameter for name, _, _, parameter in owners(module)}
    pipeline = None if plan.stages is None else _pipeline_parts(plan, module, meshes, groups, effective)
    is_tied = pipeline is not None and plan.weights.ties
    assembled = Assembled(
        plan=plan,
        module=module,
        parameters=parameters,
        named_weights=named_weights(module),
        groups=FsdpGroups.joined(groups) if groups else None,
        blocks=blocks,
        meshes=meshes,
        pipeline=pipeline,
        tied=TiedCopies(plan.weights.ties, parameters, pipeline) if is_tied else None,
        experts=experts,
    )
    decisions = (
        _model_decisions(plan, role)
        + of_context
        + uneven
        + (_expert_decisions(experts, effective, role) if experts is not None else [])
        + ([] if plan.adapter is None else [*plan.adapter.decisions(role=role), *_frozen_decisions(plan, role)])
    )
    deviation = plan.hf_config.initializer_range
    if config.path is None or config.init_from_scratch:
        initialize_weights(module, seed, deviation, ties=plan.weights.ties, local_part=local_part)
    else:
        decisions += load_weights(module, plan, checkpoint_folder(config.path), role=role, seed=seed)
    if plan.adapter is not None and plan.adapter_weights is not None and plan.adapter.source is not None:
        with failing_together(Ranks.of_process_group()):
            load_adapter(module, plan.adapter, plan.adapter_weights, Path(plan.adapter.source))
    return assembled, decisions


def _model_decisions(plan: Blueprint, role: str) -> list[Decision]:
    """Decisions of the model package; their options name entries of the model's configuration."""
    return [
        replace(decision, option=f"{role}.model_config.{decision.option}")
        for decision in model_decisions(plan.arguments)
    ]


def _frozen_decisions(plan: Blueprint, role: str) -> list[Decision]:
    """The decision about the dtype of frozen weights beside adapters, if it is another one than that of adapters."""
    if plan.frozen_dtype == plan.dtype:
        return []
    trained, frozen = (str(dtype).removeprefix("torch.") for dtype in (plan.dtype, plan.frozen_dtype))
    reason = "forward and backward passes read frozen weights in this type in any case"
    effective = f"{trained}; {frozen} for the model's own weights"
    return [Decision(f"{role}.archon.master_dtype", shown(None), effective, reason)]


def _expert_decisions(experts: ExpertBlocks, effective: EffectiveConfig, role: str) -> list[Decision]:
    """Decisions about the options of experts."""
    decisions = experts.builder.decisions(effective.device, getattr(torch, effective.compute_dtype), role=role)
    if effective.compile:
        reason = "the number of tokens per expert differs from batch to batch, so code that depends on it stays eager"
        without = "true, except dispatch and experts"
        decisions.append(Decision(f"{role}.archon.enable_compile", "true", without, reason))
    return decisions


def _build_stages(plan: Blueprint, meshes: Meshes | None) -> nn.Module:
    """Build this process's part of the model on the meta device."""
    if plan.stages is None:
        return plan.whole
    assert meshes is not None, "a pipeline has a mesh"
    held = plan.stages.held_by(meshes.pipeline_rank)
    return StagedModule({number: plan.build(plan.stages.stages[number]) for number in held}, plan.whole)


def _pipeline_parts(
    plan: Blueprint,
    module: nn.Module,
    meshes: Meshes | None,
    groups: Sequence[FsdpGroups],
    effective: EffectiveConfig,
) -> PipelineParts:
    """This process's part of the pipeline, for its runner."""
    schedule = plan.selection.schedule
    assert plan.stages is not None, "a pipeline has stages"
    assert schedule is not None, "a pipeline has a schedule"
    assert meshes is not None, "a pipeline has meshes"
    assert meshes.pipeline is not None, "the meshes have a pipeline axis"
    held = plan.stages.held_by(meshes.pipeline_rank)
    return PipelineParts(
        plan=plan.stages,
        schedule=schedule,
        stages=dict(zip(held, stages_of(module), strict=True)),
        groups=dict(zip(held, groups, strict=True)),
        rank=meshes.pipeline_rank,
        group=meshes.pipeline,
        width=plan.hf_config.get_text_config().hidden_size,
        tensor_ranks=plan.dims.tp,
        dtype=getattr(torch, effective.compute_dtype),
        device=device_of_rank(),
        reduce_each=effective.reduce_each_micro_batch,
    )


def _shard_experts(module: nn.Module, plan: Blueprint, meshes: Meshes | None) -> ExpertBlocks:
    """Shard the experts of ``module``, on the meta device, in place."""
    builder = plan.expert_builder
    assert builder is not None, "a model with experts has a builder"
    blocks = {
        str(layer_number(name)): block
        for stage in stages_of(module)
        for name, block in stage.named_modules()
        if matches_any(plan.parallel.experts, name)
    }
    if meshes is not None and meshes.experts is not None:
        for block in blocks.values():
            builder.shard(block, meshes.experts.place)
    return ExpertBlocks(builder, blocks, meshes)


def _uneven_expert_decisions(module: nn.Module, plan: Blueprint, meshes: Meshes, role: str) -> list[Decision]:
    """Decision for expert weights that do not shard evenly. Call it before FSDP2 shards them."""
    if meshes.experts is None:
        return []
    size = meshes.experts.fsdp.size(-1)
    experts = [part for stage in stages_of(module) for part in expert_modules(stage, plan.parallel)]
    for name, parameter in (found for part in experts for found in part.named_parameters()):
        if even_dim(parameter, size) is None:
            reason = f"{name} {tuple(parameter.shape)} has no dim that {size} ranks (edp) divide evenly"
            return [Decision(f"{role}.backend", "equal shards of experts", "unequal shards along dim 0", reason)]
    return []


def needs_meshes(dims: ParallelDims, effective: EffectiveConfig) -> bool:
    """Whether the module needs FSDP2, and thus meshes and a process group.

    One process needs neither, unless it casts its weights or keeps them on the host.
    """
    is_cast = effective.compute_dtype != effective.master_dtype
    return dims.world_size > 1 or is_cast or effective.offload_params


def _shard_parameters(module: nn.Module, plan: Blueprint, effective: EffectiveConfig, meshes: Meshes) -> FsdpGroups:
    """Shard the parameters with FSDP2 over ranks with other tokens, on the meta device, in place."""
    return apply_fsdp(
        module,
        plan.parallel,
        meshes.fsdp,
        compute_dtype=getattr(torch, effective.compute_dtype),
        reduce_dtype=getattr(torch, effective.reduce_dtype),
        reshard_after_forward=effective.reshard_after_forward,
        reshard_last=effective.reshard_last,
        offload=effective.offload_params,
        expert_mesh=None if meshes.experts is None else meshes.experts.fsdp,
        is_pipelined=plan.stages is not None,
    )
