"""The Archon engine: the training interface that trainers call (``contracts.engine.TrainEngine``).

The class holds options, decisions and the step count. ``running`` describes the phases in which the model is built;
steps, checkpoints and offloading have separate modules.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from archon_core.contracts.batch import Batch
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine import Selection, StepRecording, StepStats
from archon_core.contracts.loss import Loss, OutputRequest
from archon_core.contracts.model import CausalModule
from archon_core.contracts.packed import OutputName
from archon_core.contracts.pipeline import RECORDING_PREFIX
from archon_core.contracts.weight_transport import BucketMemory, WeightBucket
from archon_core.errors import ConfigError, TrainingError
from archon_core.layout import Layout
from archon_core.ranks.ranks import DataRanks
from archon_core.run_files.expert_load import EXPERT_LOAD_PREFIX, ExpertLoad, render_load
from archon_core.serving.manifest import WeightManifest
from archon_engine.assembly.assembled import assemble, needs_meshes
from archon_engine.checkpoint.dcp import TrainingState
from archon_engine.checkpoint.received import ReceivedWeights
from archon_engine.distributed.determinism import deterministic_effects, ensure_deterministic
from archon_engine.distributed.process_group import ensure_single_process_group
from archon_engine.freed_memory import keep_freed_memory
from archon_engine.mesh import device_of_rank
from archon_engine.nn.evaluation import evaluation_mode
from archon_engine.options.archon import ArchonEngineConfig
from archon_engine.options.combinations import refuse_when_strict
from archon_engine.options.effective import EffectiveConfig, resolve_effective
from archon_engine.parallel.recompute_log import REPORT_FILE, RecomputeLog
from archon_engine.parallel.tensor import shard_sequences
from archon_engine.profiling.ranges import profiled_range
from archon_engine.running import Running, start
from archon_engine.step.step import eval_step, forward_step, train_step

logger = logging.getLogger(__name__)


class ArchonEngine:
    """A model with its optimizer: the part that the layout assigns to this process (``contracts.engine.TrainEngine``).

    ``archon_core.assemble`` builds it from the installed parts.

    Args:
        config: the section of the configuration that describes the model.
        role: that section's name: ``actor``, ``critic``, ``ref`` or ``teacher``.
        layout: how the model is sharded, parsed from ``config.backend``.
        parts: the specs of the chosen model, schedule, pipeline and experts.
        seed: the run's seed.
        total_steps: optimizer steps of the run, for learning-rate schedules; ``None`` when unknown.
        explicit: dotted names of the options that the user wrote, as against defaults.

    Raises:
        ConfigError: options conflict, ``strict`` forbids a change, or a process group was started before
            ``use_deterministic_algorithms`` could take effect.
        LayoutError: the sizes of the layout conflict.
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
        self._selection = parts
        self._version = 0
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # Assumes experts: the model is unknown before initialize, which corrects this.
        self._dims = layout.parallel_dims(moe=True, option=f"{role}.backend")
        self._effective, self._decisions = resolve_effective(
            self._config, role=role, device=device, dims=self._dims, explicit=explicit, schedule=parts.schedule
        )
        if self._effective.deterministic:
            option = f"{role}.archon.use_deterministic_algorithms"
            ensure_deterministic(option=option)
            self._decisions += deterministic_effects(option)
        if config.archon.keep_freed_memory and device == "cpu" and config.optimizer is not None:
            self._decisions += keep_freed_memory(f"{role}.archon.keep_freed_memory")
        self._running_or_none: Running | None = None
        self._has_reported = False
        self._record_into: str | None = None

    def initialize(self) -> None:
        """Build the module, load or initialise its weights, create the optimizer. Collective.

        Raises:
            ConfigError: an option does not fit the model, or ``strict`` forbids a change that the model needs.
            ModelError: the model's configuration is unreadable, or its architecture does not support the options.
            LayoutError: the layout does not fit the model or the number of running processes.
            WeightsError: on every rank, if the checkpoint is damaged or does not fit.
        """
        if self._dims.world_size == 1 and needs_meshes(self._dims, self._effective):
            ensure_single_process_group()  # several processes were launched with a group
        assembled, decisions = assemble(
            self._config,
            self._effective,
            layout=self._layout,
            selection=self._selection,
            role=self._role,
            seed=self._seed,
        )
        self._record(decisions)
        self._dims = assembled.plan.dims
        running, decisions = start(
            assembled,
            self._config,
            self._effective,
            role=self._role,
            seed=self._seed,
            total_steps=self._total_steps,
        )
        self._record(decisions)
        self._running_or_none = running
        logger.info("Initialized Archon engine with parallel dims: %s", self._dims.describe())

    @property
    def module(self) -> CausalModule:
        """The model."""
        return self._running.assembled.module

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Global name -> parameter, a DTensor if it is sharded; a tied parameter once, under its first name."""
        return dict(self._running.assembled.parameters)

    @property
    def hf_config(self) -> Any:
        """The model's configuration, as ``transformers`` reads it."""
        return self._running.assembled.plan.hf_config

    @property
    def selection(self) -> Selection:
        """The specs from which this engine is assembled."""
        return self._selection

    @property
    def device(self) -> torch.device:
        """The device on which the model runs."""
        return device_of_rank()

    @property
    def data_ranks(self) -> DataRanks:
        """The data ranks, among which batches are divided, and this process's place."""
        return self._running.ranks

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Prepare ``module`` for generation; see ``contracts.engine.TrainEngine``."""
        built = self._ready.assembled
        with ExitStack() as stack:
            stack.enter_context(evaluation_mode(built.module))
            stack.enter_context(built.blocks.eager())
            if built.groups is not None:
                stack.enter_context(built.groups.whole_weights())
            if built.experts is not None:
                stack.enter_context(built.experts.builder.whole_experts(list(built.experts.blocks.values())))
            if self._dims.tp > 1:
                # The number of sequences being decoded need not be a multiple of the tensor ranks.
                shard_sequences(built.module, False)
                stack.callback(shard_sequences, built.module, True)
            yield

    @property
    def effective(self) -> EffectiveConfig:
        """The options in effect, after defaults and decisions."""
        return self._effective

    @property
    def decisions(self) -> list[Decision]:
        """Every change to the configuration, with its reason; complete after ``initialize``."""
        return list(self._decisions)

    @property
    def version(self) -> int:
        """Number of ``train_batch`` calls so far, including those before a resumed checkpoint."""
        return self._version

    def train_batch(self, batch: Batch, loss: Loss) -> StepStats:
        """One optimizer step on ``batch``; see ``contracts.engine.TrainEngine``.

        Raises:
            TrainingError: the engine has no optimizer, or no term of the loss has a gradient.
            DataError: on every rank, if the batch of one does not fit the options or the model.
        """
        running = self._ready
        if running.optimizer is None:
            raise TrainingError(
                f"engine {self._role!r}: found no optimizer, so it cannot train; set {self._role}.optimizer"
            )
        running.assembled.module.train()
        folders = self._recording_folders() if running.pipelined is not None else []
        if folders:
            running.pipelined.record_next()
        with profiled_range(self._role, "train_batch"):
            stats = train_step(
                batch.to(self.device),
                loss,
                running,
                step=self._version,
                max_gradient_norm=self._config.optimizer.gradient_clipping,
            )
        self._version += 1
        recordings: list[StepRecording] = []
        if folders and (timeline := running.pipelined.recorded(step=self._version)) is not None:
            recordings += [
                StepRecording(f"{folder}{RECORDING_PREFIX}{self._role}.json", timeline) for folder in folders
            ]
        if stats.expert_load and running.ranks.everyone.is_first:
            line = render_load(ExpertLoad(self._version, stats.expert_load))
            recordings.append(StepRecording(f"{EXPERT_LOAD_PREFIX}{self._role}.jsonl", line, series_step=self._version))
        if self.recomputation is not None and not self._has_reported:
            self._has_reported = True
            report = f"{self._role}: {self.recomputation.report()}"
            recordings.append(StepRecording(REPORT_FILE, report, is_log=True))
        return replace(stats, recordings=tuple(recordings))

    def eval_batch(self, batch: Batch, loss: Loss) -> StepStats:
        """The loss and its metrics on ``batch``, without gradients and without dropout."""
        running = self._ready
        running.assembled.module.eval()
        with profiled_range(self._role, "eval_batch"):
            return eval_step(batch.to(self.device), loss, running)

    def forward_batch(self, batch: Batch, request: OutputRequest) -> dict[OutputName, Tensor]:
        """Per-token outputs [T] in the order of the batch, aligned to predictions, without gradients or dropout."""
        running = self._ready
        running.assembled.module.eval()
        with profiled_range(self._role, "forward_batch"):
            return forward_step(batch.to(self.device), request, running)

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Compute without adapters inside the block; see ``contracts.engine.TrainsAdapters``."""
        assembled = self._ready.assembled
        if assembled.plan.adapter is None:
            raise TrainingError(f"engine {self._role!r}: found no adapters to switch off; set {self._role}.use_lora")
        with assembled.plan.adapter.switched_off(assembled.module):
            yield

    @property
    def frozen_weights(self) -> Collection[str]:
        """The tensors beside adapters; see ``contracts.engine.TrainsAdapters``."""
        plan = self._running.assembled.plan
        return () if plan.adapter is None else plan.weights.hf_shapes.keys()

    def publish_apart(self) -> Mapping[str, Any] | None:
        """Publish adapters apart from now on; see ``contracts.engine.TrainsAdapters``."""
        return self._running.checkpoints.publish_apart()

    def record_next(self, folder: str | None) -> None:
        """Record the pipeline actions of the next ``train_batch``; see ``contracts.engine.RecordsSteps``."""
        self._record_into = folder

    def weight_manifest(self, dtype: str | None = None) -> WeightManifest:
        """The tensors to publish; see ``contracts.engine.TrainEngine``.

        Raises:
            WeightsError: the model is a critic.
        """
        return self._ready.checkpoints.manifest(dtype, version=self._version)

    def weight_buckets(
        self,
        max_bytes: int,
        dtype: str | None = None,
        memory: BucketMemory | None = None,
        *,
        without: Collection[str] = (),
    ) -> Iterator[WeightBucket]:
        """Gather whole Hugging Face tensors on rank 0, bucket by bucket; see ``contracts.engine.TrainEngine``.

        Raises:
            WeightsError: the model is a critic.
        """
        manifest = self.weight_manifest(dtype)
        sent = tuple(entry for entry in manifest.tensors if entry.name not in without)
        return self._ready.checkpoints.buckets(replace(manifest, tensors=sent), max_bytes, memory)

    def save(self, path: Path, format: Literal["hf", "dcp"]) -> None:
        """Write a checkpoint folder: ``hf`` for weights that transformers reads, ``dcp`` to continue training.

        Collective; returns when the folder is complete.

        Raises:
            WeightsError: on every rank, if the folder holds ``hf`` weights already, or cannot be written.
        """
        checkpoints = self._ready.checkpoints
        if format == "hf":
            checkpoints.save_hf(path)
        else:
            checkpoints.save_dcp(path, version=self._version)
        self.data_ranks.everyone.barrier()

    def stage(self) -> TrainingState:
        """Copy the state that ``save`` would write as ``dcp`` to the host; training may continue while it is written.

        The copy is valid until the next call, which reuses its memory.
        """
        return self._ready.checkpoints.stage(version=self._version)

    def load(self, path: Path, format: Literal["hf", "dcp"]) -> None:
        """Read a folder that ``save`` wrote. Collective.

        Raises:
            WeightsError: on every rank, if the folder is damaged or does not fit the model. Weights may then be partly
                replaced: load a good folder before using the engine.
        """
        checkpoints = self._ready.checkpoints
        if format == "hf":
            decisions = checkpoints.load_hf(path)
        else:
            self._version, decisions = checkpoints.load_dcp(path)
        self._record(decisions)

    @property
    def received_weights(self) -> ReceivedWeights:
        """Access to this process's weights by Hugging Face name, for servers that receive them."""
        assembled = self._ready.assembled
        return ReceivedWeights(assembled.plan.stored_apart, assembled.named_weights)

    def offload(self) -> None:
        """Move weights and optimizer state to host memory; see ``contracts.engine.TrainEngine``."""
        self._running.residence.offload()

    def onload(self) -> None:
        """Undo ``offload``; see ``contracts.engine.TrainEngine``."""
        self._running.residence.onload()

    @property
    def recomputation(self) -> RecomputeLog | None:
        """The log of kept and recomputed activations, filled by the first step; ``None`` without ``ac_debug``."""
        return self._running.assembled.blocks.log

    def close(self) -> None:
        """Free module and optimizer."""
        self._running_or_none = None

    def _recording_folders(self) -> list[str]:
        """Where the recording of the next step goes in the run folder: prefixes of its path."""
        folders = [""] if self._config.archon.pp_record_step == self._version + 1 else []
        if self._record_into is not None:
            folders.append(f"{self._record_into}/")
            self._record_into = None
        return folders

    def _record(self, decisions: list[Decision]) -> None:
        """Add decisions. Raises ConfigError if ``strict`` is set and one of them changes the configuration."""
        self._decisions += decisions
        if refusal := refuse_when_strict(self._config, decisions, role=self._role):
            raise ConfigError(refusal)

    @property
    def _ready(self) -> Running:
        """The running state; raises if offloaded."""
        running = self._running
        running.residence.require_onload()
        return running

    @property
    def _running(self) -> Running:
        if self._running_or_none is None:
            raise TrainingError(f"engine {self._role!r}: found no model; call initialize() first")
        return self._running_or_none
