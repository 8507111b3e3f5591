"""From a configuration to a module with weights: find the spec, build on the meta device, shard, materialise, fill.

Everything before the last two steps works on shapes alone, so that no process ever holds more than its part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from archon_core.checkpoint.hf import load_hf_weights
from archon_core.checkpoint.seal import check_share
from archon_core.config.decisions import Decision
from archon_core.config.schema import EngineConfig
from archon_core.distributed.failing_together import failing_together
from archon_core.distributed.ranks import Ranks
from archon_core.engine.blocks import Blocks, prepare_blocks
from archon_core.engine.effective import EffectiveConfig
from archon_core.engine.experts import ExpertBlocks
from archon_core.engine.pipeline_parts import PipelineParts
from archon_core.engine.stages import plan_stages
from archon_core.engine.tied_copies import TiedCopies
from archon_core.errors import ConfigError
from archon_core.layout import Layout, ParallelDims
from archon_core.mesh import Meshes, build_meshes, check_world, device_of_rank
from archon_core.models.capabilities import check_capabilities
from archon_core.models.expert_builder import expert_builder
from archon_core.models.hf_config import checkpoint_folder, load_hf_config
from archon_core.models.initialize import initialize_weights
from archon_core.models.materialize import materialize_empty
from archon_core.models.parallel_plan import ParallelPlan, layer_number, matches
from archon_core.models.parameter_names import named_weights, owners, weight_shapes
from archon_core.models.stage import Stage
from archon_core.models.staged import StagedModule, stages_of
from archon_core.models.weight_map import ResolvedMap
from archon_core.nn.attention import check_attention_backend, set_attention_backend
from archon_core.parallel.activation_checkpointing import blocks_of
from archon_core.parallel.context import check_context_plan
from archon_core.parallel.fsdp import FsdpGroups, apply_fsdp
from archon_core.parallel.shards import local_part
from archon_core.parallel.sizes import check_sizes, sharded_extents
from archon_core.parallel.tensor import apply_tensor_parallel, check_tensor_plan
from archon_core.pipeline import StagePlan
from archon_core.plugins.registry import Registry
from archon_core.plugins.specs import ModelSpec, ScheduleSpec
from archon_core.protocols import CausalModule, ModelArguments, MoEBuilder


@dataclass(frozen=True)
class Assembled:
    """A module ready to run.

    Attributes:
        spec: the model spec that it was built from.
        hf_config: the checkpoint's configuration, as ``transformers`` reads it.
        dims: sizes of all axes.
        arguments: the model's own sizes and options.
        module: on its device, with its weights.
        parameters: global name -> parameter, sharded; a tied one once, under its first name. Fixed here, because FSDP
            puts others in their place while a forward pass runs.
        groups: how FSDP2 shards the module; ``None`` for a module that is whole and needs no cast.
        blocks: what was done to its blocks beside sharding.
        meshes: the ranks that it is sharded over; ``None`` for a module that is whole and needs no cast.
        weights: which Hugging Face tensor holds which of the module's parameters.
        pipeline: this process's part of a pipeline; ``None`` where the model is not cut into stages.
        tied: weights of which two stages have a copy; ``None`` where none has.
        experts: the mixture-of-experts blocks that are here; ``None`` for a model without experts.
    """

    spec: ModelSpec
    hf_config: Any
    dims: ParallelDims
    arguments: ModelArguments
    module: CausalModule
    parameters: Mapping[str, nn.Parameter]
    named_weights: Mapping[str, Tensor]
    groups: FsdpGroups | None
    blocks: Blocks
    meshes: Meshes | None
    weights: ResolvedMap
    pipeline: PipelineParts | None = None
    tied: TiedCopies | None = None
    experts: ExpertBlocks | None = None

    @property
    def copies(self) -> Mapping[str, str]:
        """Names of parameters here that are copies of another -> that one's name."""
        return {} if self.tied is None else self.tied.held

    @property
    def logical_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters without copies: over all processes of a pipeline, each of the model's once."""
        return {name: parameter for name, parameter in self.parameters.items() if name not in self.copies}


def assemble(
    config: EngineConfig, effective: EffectiveConfig, *, layout: Layout, registry: Registry, role: str, seed: int
) -> tuple[Assembled, list[Decision]]:
    """Build the model that ``config`` names; what was done other than asked comes with it.

    Collective when the layout has more than one rank.

    Args:
        config: the section of the configuration that describes the model.
        effective: what was made of its options.
        layout: how the model is sharded.
        registry: where model specs come from.
        role: the section's name, for messages.
        seed: the run's seed, for weights that no checkpoint gives.

    Raises:
        ConfigError: not exactly one of ``path`` and ``model_config`` is given, or an option does not fit the model.
        ModelError: the model's configuration cannot be read or expressed, or its architecture has no value head.
        UnknownNameError: no installed plugin serves the model type.
        LayoutError: the model cannot be sharded like that, or another number of processes runs.
        WeightsError: the checkpoint does not fit.
    """
    _check_source(config, role)
    with failing_together(Ranks.of_process_group()):
        hf_config = load_hf_config(config.model_config if config.model_config is not None else config.path)
    spec = registry.model_for(hf_config.model_type, config.archon.model)
    check_capabilities(spec, layout, critic=config.is_critic, role=role)
    model = spec.load()
    arguments = model.arguments.from_hf_config(hf_config, critic=config.is_critic)
    _refuse_dropout(config, arguments, role)

    builder = expert_builder(spec, registry, config.archon, role=role)

    def build(stage: Stage | None = None) -> nn.Module:
        with torch.device("meta"):
            return model.build(arguments, stage, experts=builder).to(getattr(torch, effective.master_dtype))

    whole = build()
    weights = model.weight_map(arguments).resolve(weight_shapes(whole))
    plan = model.parallel_plan(arguments)
    dims = layout.parallel_dims(moe=model.has_experts, option=f"{role}.backend")
    _check_plan(whole, plan, layout, option=f"{role}.backend")
    stages: StagePlan | None = None
    schedule: ScheduleSpec | None = None
    if dims.pp > 1:
        schedule = registry.get(ScheduleSpec, config.archon.pp_schedule)
        stages = plan_stages(
            whole, plan, n_ranks=dims.pp, schedule=schedule, options=config.archon, registry=registry, role=role
        )
    meshes = _meshes(effective, dims, experts=model.has_experts, option=f"{role}.backend")
    module = whole
    if stages is not None and meshes is not None:
        module = StagedModule({n: build(stages.stages[n]) for n in stages.held_by(meshes.pipeline_rank)}, whole)
    if effective.attn_type is not None:
        compute_dtype = getattr(torch, effective.compute_dtype)
        backend = check_attention_backend(effective.attn_type, effective.device, compute_dtype, arguments.head_dim)
        set_attention_backend(module, backend)
    if meshes is not None and meshes.tp is not None:
        for stage in stages_of(module):
            apply_tensor_parallel(stage, plan, meshes.tp)
    experts = None if builder is None else _share_experts(module, plan, meshes, builder)
    blocks = prepare_blocks(module, plan, effective, role=role, among=[name for name, _ in blocks_of(whole, plan)])
    groups = [] if meshes is None else [_shard_parameters(s, plan, effective, meshes) for s in stages_of(module)]
    materialize_empty(module, "cpu" if effective.offload_params else device_of_rank())
    parameters = {name: parameter for name, _, _, parameter in owners(module)}
    assembled = Assembled(
        spec=spec,
        hf_config=hf_config,
        dims=dims,
        arguments=arguments,
        module=module,
        parameters=parameters,
        named_weights=named_weights(module),
        groups=FsdpGroups.joined(groups) if groups else None,
        blocks=blocks,
        meshes=meshes,
        weights=weights,
        experts=experts,
    )
    if stages is not None and schedule is not None and meshes is not None:
        assembled = _pipelined(assembled, stages, schedule, groups, effective)
    if config.path is None or config.init_from_scratch:
        initialize_weights(module, seed, hf_config.initializer_range, ties=weights.ties, local_part=local_part)
        return assembled, []
    return assembled, load_weights(assembled, checkpoint_folder(config.path), role=role, seed=seed)


def _check_plan(whole: nn.Module, plan: ParallelPlan, layout: Layout, *, option: str) -> None:
    """Check that a whole module can be sharded as ``layout`` says. Raises LayoutError, ModelError."""
    check_sizes(sharded_extents(whole, plan), layout, option=option)
    if layout.dims["c"] > 1:
        check_context_plan(whole, plan)
    if layout.dims["t"] > 1:
        check_tensor_plan(whole, plan)


def _pipelined(
    assembled: Assembled,
    stages: StagePlan,
    schedule: ScheduleSpec,
    groups: Sequence[FsdpGroups],
    effective: EffectiveConfig,
) -> Assembled:
    """The same with what a pipeline needs to know of it."""
    meshes = assembled.meshes
    assert meshes is not None, "a pipeline has a mesh"
    assert meshes.pipeline is not None, "and an axis of it"
    held = stages.held_by(meshes.pipeline_rank)
    parts = PipelineParts(
        plan=stages,
        schedule=schedule,
        stages=dict(zip(held, stages_of(assembled.module), strict=True)),
        groups=dict(zip(held, groups, strict=True)),
        rank=meshes.pipeline_rank,
        group=meshes.pipeline,
        width=assembled.hf_config.get_text_config().hidden_size,
        tensor_ranks=meshes.dims.tp,
        dtype=getattr(torch, effective.compute_dtype),
        device=device_of_rank(),
        reduce_each=effective.reduce_each_micro_batch,
    )
    ties = {name: original for name, original in assembled.weights.ties.items() if len(stages) > 1}
    tied = TiedCopies(
        originals=ties,
        parameters=assembled.parameters,
        group=meshes.pipeline,
        rank=meshes.pipeline_rank,
        copies_on=stages.last_rank,
        originals_on=stages.rank_of[0],
    )
    return replace(assembled, pipeline=parts, tied=tied if ties else None)


def _share_experts(module: nn.Module, plan: ParallelPlan, meshes: Meshes | None, builder: MoEBuilder) -> ExpertBlocks:
    """Shard the experts of ``module``, on the meta device, in place."""
    blocks = {
        str(number): block
        for stage in stages_of(module)
        for name, block in stage.named_modules()
        if any(matches(pattern, name) for pattern in plan.experts)
        for number in [layer_number(name)]
    }
    if meshes is None or meshes.experts is None:
        return ExpertBlocks(builder, blocks)
    for block in blocks.values():
        builder.shard(block, meshes.experts.place)
    holders = meshes.holders or (dist.group.WORLD if meshes.dims.world_size > 1 else None)
    return ExpertBlocks(builder, blocks, holders, meshes.pipeline)


def _meshes(effective: EffectiveConfig, dims: ParallelDims, *, experts: bool, option: str) -> Meshes | None:
    """The engine's meshes; ``None`` for one process that keeps its module whole."""
    check_world(dims, option=option)
    if dims.world_size == 1 and effective.compute_dtype == effective.master_dtype and not effective.offload_params:
        return None
    return build_meshes(dims, effective.device, option=option, experts=experts)


def _shard_parameters(module: nn.Module, plan: ParallelPlan, effective: EffectiveConfig, meshes: Meshes) -> FsdpGroups:
    """Shard the parameters over ranks with other tokens, on the meta device, in place."""
    return apply_fsdp(
        module,
        plan,
        meshes.fsdp,
        compute_dtype=getattr(torch, effective.compute_dtype),
        reduce_dtype=getattr(torch, effective.reduce_dtype),
        reshard_after_forward=effective.reshard_after_forward,
        reshard_last=effective.reshard_last,
        offload=effective.offload_params,
        expert_mesh=None if meshes.experts is None else meshes.experts.fsdp,
    )


def load_weights(assembled: Assembled, folder: Path, *, role: str, seed: int) -> list[Decision]:
    """Fill the module from a Hugging Face folder; what a checkpoint may lack is drawn from the seed, as a decision.

    Collective: a slice that is damaged is read by some ranks only.

    Raises:
        WeightsError: on every rank, the checkpoint does not fit.
    """
    ranks = Ranks.of_process_group()
    failure: Exception | None = None
    with ThreadPoolExecutor(1, "archon-check") as pool:
        checking = pool.submit(check_share, folder, ranks)  # of a folder that we wrote; others have no checksums
        try:
            report = load_hf_weights(
                assembled.module, assembled.weights, folder, local_boxes=lambda _name, weight: [local_part(weight)]
            )
        except Exception as error:
            failure = error
    with failing_together(ranks):
        checking.result()  # first: damage is named as such on all ranks, whatever it made of loading on one
    with failing_together(ranks):
        if failure is not None:
            raise failure
    initialize_weights(
        assembled.module,
        seed,
        assembled.hf_config.initializer_range,
        only=report.initialised,
        ties=assembled.weights.ties,
        local_part=local_part,
    )
    return [
        Decision(f"{role}.path", f"{name} of {folder}", "random, from the seed", "the checkpoint has none")
        for name in report.initialised
    ]


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
