"""The Archon engine: what trainers see of a model in training, composed from the parts beside this module."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from archon_core.contracts.batch import Batch
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine import StepStats
from archon_core.contracts.loss import Loss, OutputRequest
from archon_core.contracts.model import CausalModule
from archon_core.contracts.packed import OutputName
from archon_core.contracts.pipeline import (
    RECORD_LOGGER,
    PipelinedRunner,
    PipelineParts,
)
from archon_core.errors import ConfigError, TrainingError
from archon_core.layout import Layout
from archon_core.ranks.ranks import DataRanks, Ranks
from archon_core.selection import Selection
from archon_engine.assembly.assembled import Assembled, assemble
from archon_engine.checkpoint.dcp import TrainingState
from archon_engine.checkpoint.engine_checkpoints import EngineCheckpoints
from archon_engine.distributed.determinism import deterministic_effects, ensure_deterministic
from archon_engine.mesh import data_ranks, device_of_rank
from archon_engine.nn.evaluation import evaluation_mode
from archon_engine.offloading import Residence
from archon_engine.optimizer.named_optimizer import NamedOptimizer
from archon_engine.options.archon import ArchonEngineConfig
from archon_engine.options.combinations import refuse_when_strict
from archon_engine.options.effective import EffectiveConfig, resolve_effective
from archon_engine.options.pipelines import micro_batch_decisions, micro_batch_divisor
from archon_engine.parallel.recompute_log import REPORT_LOGGER, RecomputeLog
from archon_engine.parallel.tensor import shard_sequences
from archon_engine.step.sequential_runner import SequentialRunner
from archon_engine.step.step import (
    Parts,
    PipelineNeeds,
    Splitter,
    eval_step,
    forward_step,
    train_step,
)

logger = logging.getLogger(__name__)
report_logger = logging.getLogger(REPORT_LOGGER)
record_logger = logging.getLogger(RECORD_LOGGER)


@dataclass(frozen=True)
class _Running:
    """What ``initialize`` makes.

    Attributes:
        assembled: the model.
        parts: what its steps are made of.
        pipelined: their runner, where the model is cut into stages.
        optimizer: ``None`` for a model that is not trained.
        residence: whether it is on its device.
        checkpoints: saves and loads it.
    """

    assembled: Assembled
    parts: Parts
    pipelined: PipelinedRunner | None
    optimizer: NamedOptimizer | None
    residence: Residence
    checkpoints: EngineCheckpoints


class ArchonEngine:
    """A model with its optimizer, on this process's share of the layout (``contracts.engine.TrainEngine``).

    ``archon_core.assemble`` builds it with the parts that are installed.

    Args:
        config: the section of the configuration that describes the model.
        role: that section's name: ``actor``, ``critic``, ``ref`` or ``teacher``.
        layout: parsed from ``config.backend``.
        parts: the chosen model, schedule, pipeline and experts.
        seed: the run's seed.
        total_steps: optimizer steps of the run, for learning-rate schedules; ``None`` when unknown.
        explicit: dotted names of the options that the user wrote.
    """

    def __init__(
        self,
        config: ArchonEngineConfig,
        *,
        role: str,
        layout: Layout,
        parts: Selection,
        seed: int,
        total_steps: int | None,
        explicit: frozenset[str] = frozenset(),
    ) -> None:
        self._config = config
        self._role = role
        self._layout = layout
        self._seed = seed
        self._total_steps = total_steps
        self._parts = parts
        self._version = 0
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # Whether experts have axes is known with the model; until then nobody asks for those.
        self._dims = layout.parallel_dims(moe=True, option=f"{role}.backend")
        self._effective, self._decisions = resolve_effective(
            self._config, role=role, device=device, dims=self._dims, explicit=explicit, schedule=parts.schedule
        )
        if self._effective.deterministic:
            option = f"{role}.archon.use_deterministic_algorithms"
            ensure_deterministic(option=option)
            self._decisions += deterministic_effects(option)
        self._running_or_none: _Running | None = None
        self._has_reported = False

    def initialize(self) -> None:
        """Build the module, load or initialise its weights, make the optimizer. Collective.

        Raises:
            ConfigError, LayoutError, WeightsError: as the parts do.
        """
        assembled, decisions = assemble(
            self._config,
            self._effective,
            layout=self._layout,
            parts=self._parts,
            role=self._role,
            seed=self._seed,
        )
        self._record(decisions)
        self._dims = assembled.plan.dims
        meshes, pipeline = assembled.meshes, assembled.pipeline
        ranks = data_ranks(self._dims, losses_on=0 if pipeline is None else pipeline.plan.last_rank)
        split = Splitter(
            self._config.mb_spec,
            multiple=self._effective.pad_multiple,
            at_least=self._effective.pad_at_least,
            context=None if meshes is None else meshes.context,
            pipeline=None if pipeline is None else self._pipeline_needs(pipeline),
            replays_routing=self._replays_routing(assembled),
        )
        pipelined = self._build_pipeline(assembled)
        parts = Parts(
            split,
            SequentialRunner(assembled.module, assembled.groups) if pipelined is None else pipelined,
            ranks,
            getattr(assembled.plan.hf_config, "vocab_size", None),
            pipeline=None if meshes is None else meshes.pipeline,
            tied=assembled.tied,
            experts=assembled.experts,
        )
        optimizer = self._build_optimizer(assembled)
        self._running_or_none = _Running(
            assembled,
            parts,
            pipelined,
            optimizer,
            Residence(assembled.module, assembled.groups, optimizer, role=self._role),
            EngineCheckpoints(
                self._config,
                self._effective,
                assembled,
                optimizer,
                ranks.everyone,
                role=self._role,
                seed=self._seed,
            ),
        )
        logger.info("Initialized Archon engine with parallel dims: %s", self._dims.describe())

    def _pipeline_needs(self, pipeline: PipelineParts) -> PipelineNeeds:
        """Micro-batch constraints of the schedule; records each change as a decision."""
        schedule, n_ranks, n_stages = pipeline.schedule, pipeline.group.size(), len(pipeline.plan)
        decisions = micro_batch_decisions(
            self._config.mb_spec, schedule, n_ranks=n_ranks, n_stages=n_stages, role=self._role
        )
        for d in decisions:
            logger.warning("%s: %s is used, not %s: %s", d.option, d.effective, d.requested, d.reason)
        self._record(decisions)
        return PipelineNeeds(n_stages, micro_batch_divisor(schedule, n_ranks))

    def _replays_routing(self, assembled: Assembled) -> bool:
        replays = self._config.archon.moe_routing_replay
        if replays and assembled.experts is None:
            raise ConfigError(
                f"{self._role}.archon.moe_routing_replay: found true; model {assembled.plan.spec.name!r} has no "
                "experts; set it to false"
            )
        return replays

    def _build_pipeline(self, assembled: Assembled) -> PipelinedRunner | None:
        if assembled.pipeline is None:
            return None
        assert self._parts.pipeline is not None, "a selection with a schedule has who runs it"
        runner = self._parts.pipeline.load()(assembled.pipeline)
        assembled.module.connect(runner.pass_through, Ranks.of_process_group(assembled.pipeline.group))
        return runner

    def _build_optimizer(self, assembled: Assembled) -> NamedOptimizer | None:
        if self._config.optimizer is not None:
            meshes = assembled.meshes
            return NamedOptimizer(
                assembled.parameters,
                self._config.optimizer,
                total_steps=self._total_steps,
                holders=None if meshes is None else meshes.holders,
            )
        for parameter in assembled.parameters.values():
            parameter.requires_grad_(False)
        return None

    @property
    def module(self) -> CausalModule:
        """The model."""
        return self._running.assembled.module

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Global name -> parameter, a DTensor where it is sharded; a tied one once, under its first name."""
        return dict(self._running.assembled.parameters)

    @property
    def hf_config(self) -> Any:
        """The model's configuration, as ``transformers`` reads it."""
        return self._running.assembled.plan.hf_config

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return device_of_rank()

    @property
    def data_ranks(self) -> DataRanks:
        """Which share of a batch is this process's."""
        return self._running.parts.ranks

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Ready ``module`` for generation; see ``contracts.engine.TrainEngine``."""
        built = self._ready.assembled
        with ExitStack() as stack:
            stack.enter_context(evaluation_mode(built.module))
            stack.enter_context(built.blocks.eager())
            if built.groups is not None:
                stack.enter_context(built.groups.whole_weights())
            if built.experts is not None:
                stack.enter_context(built.experts.builder.whole_experts(list(built.experts.blocks.values())))
            if self._dims.tp > 1:
                # Rows being decoded need not be a multiple of the tensor ranks.
                shard_sequences(built.module, False)
                stack.callback(shard_sequences, built.module, True)
            yield

    @property
    def effective(self) -> EffectiveConfig:
        """What the engine runs with."""
        return self._effective

    @property
    def decisions(self) -> list[Decision]:
        """What was done other than asked, with reasons."""
        return list(self._decisions)

    @property
    def version(self) -> int:
        """Calls of ``train_batch`` so far, in this and in resumed runs."""
        return self._version

    def train_batch(self, batch: Batch, loss: Loss) -> StepStats:
        """One optimizer step on ``batch``. Raises TrainingError for an engine without an optimizer."""
        running = self._ready
        if running.optimizer is None:
            raise TrainingError(
                f"engine {self._role!r}: found no optimizer, so it cannot train; set {self._role}.optimizer"
            )
        running.assembled.module.train()
        records = running.pipelined is not None and self._config.archon.pp_record_step == self._version + 1
        if records:
            running.pipelined.record_next()
        stats = train_step(
            batch.to(self.device),
            loss,
            running.parts,
            optimizer=running.optimizer,
            step=self._version,
            max_gradient_norm=self._config.optimizer.gradient_clipping,
        )
        self._version += 1
        if records and (recording := running.pipelined.recorded(step=self._version)) is not None:
            record_logger.info("%s", recording, extra={"role": self._role})
        self._report_recomputation()
        return stats

    def eval_batch(self, batch: Batch, loss: Loss) -> StepStats:
        """The loss and its metrics on ``batch``, without gradients and without dropout."""
        running = self._ready
        running.assembled.module.eval()
        return eval_step(batch.to(self.device), loss, running.parts)

    def forward_batch(self, batch: Batch, request: OutputRequest) -> dict[OutputName, Tensor]:
        """Per-token outputs [T] in the order of the batch, aligned to predictions, without gradients or dropout."""
        running = self._ready
        running.assembled.module.eval()
        return forward_step(batch.to(self.device), request, running.parts)

    def save(self, path: Path, format: Literal["hf", "dcp"]) -> None:
        """Write a checkpoint folder: ``hf`` for weights that transformers reads, ``dcp`` to continue training.

        Collective; returns when the folder is complete.

        Raises:
            WeightsError: on every rank, ``hf`` weights are there already.
        """
        checkpoints = self._ready.checkpoints
        if format == "hf":
            checkpoints.save_hf(path)
        else:
            checkpoints.save_dcp(path, version=self._version)
        self.data_ranks.everyone.barrier()

    def stage(self) -> TrainingState:
        """What ``save`` would write as ``dcp`` now, copied to the host; training may go on while it is written.

        The copies last until the next call.
        """
        return self._ready.checkpoints.stage(version=self._version)

    def load(self, path: Path, format: Literal["hf", "dcp"]) -> None:
        """Read what ``save`` wrote. Collective.

        Raises:
            WeightsError: on every rank, it is damaged or does not fit the model; load something whole before going on.
        """
        checkpoints = self._ready.checkpoints
        if format == "hf":
            decisions = checkpoints.load_hf(path)
        else:
            self._version, decisions = checkpoints.load_dcp(path)
        self._record(decisions)

    def offload(self) -> None:
        """Move weights and optimizer state to host memory; see ``contracts.engine.TrainEngine``."""
        self._running.residence.offload()

    def onload(self) -> None:
        """Move them back; see ``contracts.engine.TrainEngine``."""
        self._running.residence.onload()

    @property
    def recomputation(self) -> RecomputeLog | None:
        """What activation checkpointing keeps and recomputes, from the first step on; ``None`` without ``ac_debug``."""
        return self._running.assembled.blocks.log

    def close(self) -> None:
        """Free module and optimizer."""
        self._running_or_none = None

    def _record(self, decisions: list[Decision]) -> None:
        """Add to the decisions. Raises ConfigError when ``strict`` allows no change to what was asked."""
        self._decisions += decisions
        if refusal := refuse_when_strict(self._config, decisions, role=self._role):
            raise ConfigError(refusal)

    def _report_recomputation(self) -> None:
        if self.recomputation is not None and not self._has_reported:
            self._has_reported = True
            report_logger.info("%s: %s", self._role, self.recomputation.report())

    @property
    def _ready(self) -> _Running:
        """The running state; raises if offloaded."""
        running = self._running
        running.residence.require_onload()
        return running

    @property
    def _running(self) -> _Running:
        if self._running_or_none is None:
            raise TrainingError(f"engine {self._role!r}: found no model in it; call initialize() first")
        return self._running_or_none
