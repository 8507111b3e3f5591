"""The last phase of building an engine: an assembled model with optimizer, runner, offloading and checkpoints.

Each phase holds the one before by reference: ``Selection`` (specs) -> ``Blueprint`` (the model on the meta device) ->
``Assembled`` (sharded, with weights) -> ``Running``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from archon_core.contracts.decisions import Decision
from archon_core.contracts.pipeline import PipelinedRunner, PipelineParts, Runner
from archon_core.ranks.ranks import DataRanks, Ranks
from archon_engine.assembly.assembled import Assembled
from archon_engine.checkpoint.engine_checkpoints import EngineCheckpoints
from archon_engine.mesh import data_ranks
from archon_engine.offloading import Residence
from archon_engine.optimizer.named_optimizer import NamedOptimizer
from archon_engine.options.archon import ArchonEngineConfig
from archon_engine.options.effective import EffectiveConfig
from archon_engine.options.pipelines import micro_batch_decisions, micro_batch_divisor
from archon_engine.step.sequential_runner import SequentialRunner
from archon_engine.step.splitting import PipelineNeeds, Splitter


@dataclass(frozen=True)
class Running:
    """An engine between ``initialize`` and ``close``.

    Attributes:
        assembled: the model.
        optimizer: updates its parameters; ``None`` for a model that is not trained.
        split: splits this rank's part of a batch into micro-batches.
        runner: executes micro-batches.
        ranks: the data ranks, among which batches are divided.
        residence: moves weights and optimizer state between device and host.
        checkpoints: saves and loads the model and its optimizer.
    """

    assembled: Assembled
    optimizer: NamedOptimizer | None
    split: Splitter
    runner: Runner
    ranks: DataRanks
    residence: Residence
    checkpoints: EngineCheckpoints

    @property
    def pipelined(self) -> PipelinedRunner | None:
        """The runner of a pipeline; ``None`` without one."""
        return None if self.assembled.pipeline is None else self.runner  # type: ignore[return-value]


def start(
    assembled: Assembled,
    config: ArchonEngineConfig,
    effective: EffectiveConfig,
    *,
    role: str,
    seed: int,
    total_steps: int | None,
) -> tuple[Running, list[Decision]]:
    """Give ``assembled`` an optimizer, a runner and checkpoints. Returns them with the decisions.

    Args:
        config: the section of the configuration that describes the model.
        effective: the options in effect.
        role: the section's name, for messages.
        seed: the run's seed, for weights that a checkpoint lacks.
        total_steps: optimizer steps of the run, for learning-rate schedules; ``None`` when unknown.

    Raises:
        ConfigError: the learning rate depends on an unknown number of steps.
        PluginError: the pipeline's runner cannot be imported.
    """
    plan, meshes, pipeline = assembled.plan, assembled.meshes, assembled.pipeline
    decisions: list[Decision] = []
    needs: PipelineNeeds | None = None
    runner: Runner = SequentialRunner(assembled.module, assembled.groups)
    if pipeline is not None:
        needs, decisions = _pipeline_needs(config, pipeline, role=role)
        runner = _connect_runner(assembled, pipeline)
    ranks_of_pack = None if meshes is None else meshes.context
    split = Splitter(
        config.mb_spec,
        multiple=math.lcm(effective.pad_multiple, 1 if ranks_of_pack is None else ranks_of_pack.multiple),
        at_least=effective.pad_at_least,
        context=ranks_of_pack,
        pipeline=needs,
        replays_routing=config.archon.moe_routing_replay,
        shares_prefixes=config.enable_tree_training,
        option=f"{role}.mb_spec",
    )
    ranks = data_ranks(plan.dims, losses_on=0 if pipeline is None else pipeline.plan.last_rank)
    compute_dtype = getattr(torch, effective.compute_dtype)
    optimizer = _build_optimizer(assembled, config, compute_dtype, role=role, total_steps=total_steps)
    running = Running(
        assembled,
        optimizer,
        split,
        runner,
        ranks,
        Residence(assembled.module, assembled.groups, optimizer, role=role),
        EngineCheckpoints(config, effective, assembled, optimizer, ranks.everyone, role=role, seed=seed),
    )
    return running, decisions


def _pipeline_needs(
    config: ArchonEngineConfig, pipeline: PipelineParts, *, role: str
) -> tuple[PipelineNeeds, list[Decision]]:
    """Micro-batch constraints of the schedule, and a decision for each option that they change."""
    schedule, n_ranks, n_stages = pipeline.schedule, pipeline.group.size(), len(pipeline.plan)
    decisions = micro_batch_decisions(config.mb_spec, schedule, n_ranks=n_ranks, n_stages=n_stages, role=role)
    return PipelineNeeds(n_stages, micro_batch_divisor(schedule, n_ranks)), decisions


def _connect_runner(assembled: Assembled, pipeline: PipelineParts) -> PipelinedRunner:
    """Build the pipeline's runner, and have the module run its whole-model forward passes through it."""
    spec = assembled.plan.selection.pipeline
    assert spec is not None, "a selection with a schedule has a pipeline"
    runner: PipelinedRunner = spec.load()(pipeline)
    assembled.module.connect(runner.pass_through, Ranks.of_process_group(pipeline.group))
    return runner


def _build_optimizer(
    assembled: Assembled,
    config: ArchonEngineConfig,
    compute_dtype: torch.dtype,
    *,
    role: str,
    total_steps: int | None,
) -> NamedOptimizer | None:
    if config.optimizer is not None:
        return NamedOptimizer(
            assembled.parameters,
            config.optimizer,
            total_steps=total_steps,
            holders=None if assembled.meshes is None else assembled.meshes.holders,
            compute_dtype=compute_dtype,
            option=f"{role}.optimizer",
        )
    for parameter in assembled.parameters.values():
        parameter.requires_grad_(False)
    return None
