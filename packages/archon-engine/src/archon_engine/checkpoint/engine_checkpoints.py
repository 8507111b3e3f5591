"""Saves and loads an engine: weights in Hugging Face format, and training state to resume from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.decisions import Decision
from archon_core.contracts.weight_transport import BucketMemory, WeightBucket
from archon_core.errors import WeightsError
from archon_core.models.weight_map import ResolvedMap
from archon_core.ranks.failing_together import failing_together
from archon_core.ranks.ranks import Ranks
from archon_core.serving.manifest import WeightManifest
from archon_engine.assembly.assembled import Assembled
from archon_engine.assembly.weight_loading import load_weights
from archon_engine.checkpoint.adapter_files import ADAPTER_FOLDER, save_adapter
from archon_engine.checkpoint.dcp import TrainingState, describe_model, load_training_state
from archon_engine.checkpoint.gathering import WRITER, gather_to_writer
from archon_engine.checkpoint.hf_saving import prepare_folder, save_hf_weights
from archon_engine.checkpoint.parts import HostCopies
from archon_engine.checkpoint.weight_export import BucketBuffers, gather_buckets, manifest_of
from archon_engine.models.hf_config import checkpoint_folder
from archon_engine.models.weight_conversion import BoxCopier, copy_from
from archon_engine.optimizer.named_optimizer import NamedOptimizer
from archon_engine.options.archon import ArchonEngineConfig
from archon_engine.options.effective import EffectiveConfig


class EngineCheckpoints:
    """Saves and loads the state of one engine. All methods but ``stage`` are collective.

    Args:
        config: the section of the configuration that describes the model.
        effective: the options in effect.
        assembled: the assembled model.
        optimizer: its optimizer; ``None`` for a model that is not trained.
        ranks: all processes of the engine.
        role: the section's name, for messages.
        seed: the run's seed, for weights that a checkpoint lacks.
    """

    def __init__(
        self,
        config: ArchonEngineConfig,
        effective: EffectiveConfig,
        assembled: Assembled,
        optimizer: NamedOptimizer | None,
        ranks: Ranks,
        *,
        role: str,
        seed: int,
    ) -> None:
        self._config = config
        self._effective = effective
        self._assembled = assembled
        self._optimizer = optimizer
        self._ranks = ranks
        self._role = role
        self._seed = seed
        self._host_copies = HostCopies()
        self._bucket_buffers = BucketBuffers()
        self._publishes_apart = False

    def save_hf(self, folder: Path) -> None:
        """Write weights, configuration, tokenizer and generation settings in Hugging Face format.

        The weights of a model with adapters are merged; the adapters are also written alone, into ``adapter``.

        Raises:
            WeightsError: on every rank, if the folder holds weights already, or cannot be written.
        """
        assembled, is_writer = self._assembled, self._ranks.rank == WRITER
        with failing_together(self._ranks):
            if is_writer:
                prepare_folder(folder)
        # Ranks send and receive inside this block. A WeightsError is raised after all shards were sent, so the ranks
        # can share it. Any other error may come from a rank that others still wait for, so it ends that rank at once.
        with failing_together(self._ranks, kind=WeightsError):
            save_hf_weights(
                self._reader(self._compute_dtype),
                assembled.plan.weights,
                folder,
                assembled.plan.hf_config,
                dtype=self._compute_dtype,
                critic=self._config.is_critic,
                companions_from=self._companions(),
                write=is_writer,
            )
            if assembled.plan.adapter is not None and assembled.plan.adapter_weights is not None:
                save_adapter(
                    self._own_reader(self._compute_dtype),
                    assembled.plan.adapter_weights,
                    folder / ADAPTER_FOLDER,
                    assembled.plan.adapter.file_config(self._config.path),
                    dtype=self._compute_dtype,
                    write=is_writer,
                )

    def manifest(self, dtype: str | None, *, version: int) -> WeightManifest:
        """The tensors to publish; see ``contracts.engine.TrainEngine.weight_manifest``."""
        if self._config.is_critic:
            raise WeightsError(
                f"engine {self._role!r}: found a critic, whose value head no server runs; publish the actor's weights"
            )
        published = self._compute_dtype if dtype is None else getattr(torch, dtype)
        return manifest_of(self._published, published, version=version)

    def publish_apart(self) -> Mapping[str, Any] | None:
        """Publish adapters apart from now on; see ``contracts.engine.TrainsAdapters``."""
        adapter = self._assembled.plan.adapter
        if adapter is None:
            return None
        self._publishes_apart = True
        return adapter.file_config(self._config.path)

    def buckets(
        self, manifest: WeightManifest, max_bytes: int, memory: BucketMemory | None = None
    ) -> Iterator[WeightBucket]:
        """Gather the tensors of ``manifest`` on the writing rank; see ``TrainEngine.weight_buckets``."""
        read = self._own_reader if self._publishes_apart else self._reader
        return gather_buckets(
            read(getattr(torch, manifest.tensors[0].dtype)),
            self._published,
            manifest,
            max_bytes,
            publishes=self._ranks.rank == WRITER,
            memory=memory or self._bucket_buffers,
        )

    def save_dcp(self, folder: Path, *, version: int) -> None:
        """Write weights, optimizer state and ``version``.

        Raises:
            WeightsError: on every rank, if a part cannot be written.
        """
        self._state(version).write(folder, self._ranks)

    def stage(self, *, version: int) -> TrainingState:
        """Copy the state that ``save_dcp`` would write now to the host. The copies are valid until the next call."""
        state = self._state(version)
        return replace(state, parts=self._host_copies.of(state.parts))

    def load_hf(self, folder: Path) -> list[Decision]:
        """Read weights in Hugging Face format; see ``weight_loading.load_weights``."""
        return load_weights(self._assembled.module, self._assembled.plan, folder, role=self._role, seed=self._seed)

    def load_dcp(self, folder: Path) -> tuple[int, list[Decision]]:
        """Read a folder that ``save_dcp`` wrote. Returns the version and decisions.

        Raises:
            WeightsError: on every rank, if the folder is damaged or does not fit. Weights and optimizer state may then
                be a mixture of both runs: load a good folder before using the engine.
        """
        if self._optimizer is not None:
            self._optimizer.clear_state()  # otherwise old and new state would be in memory together
        copies = self._assembled.copies
        parameters = self._assembled.parameters
        # A tied copy is filled from the entry of its original. If this process has both, only the original is read; it
        # is copied afterwards.
        stored = {
            copies.get(name, name): parameters[name] for name in sorted(parameters, key=lambda n: n not in copies)
        } | self._assembled.buffers
        whole = self._assembled.plan.weights.stored
        if (added := self._assembled.plan.adapter_weights) is not None:
            whole = added.stored
            stored = {name: weight for name, weight in stored.items() if name in whole}
        state, counters, decisions = load_training_state(folder, stored, whole)
        if self._assembled.tied is not None:
            self._assembled.tied.copy_originals()
        if self._optimizer is not None:
            own = {name: state.get(copies.get(name, name), {}) for name in parameters}
            self._optimizer.load_state(
                {n: {k: v.clone() if n in copies else v for k, v in entry.items()} for n, entry in own.items() if entry}
            )
        return counters["version"], decisions

    @property
    def _published(self) -> ResolvedMap:
        """The map of the published tensors."""
        plan = self._assembled.plan
        return plan.stored_apart if self._publishes_apart else plan.weights

    @property
    def _compute_dtype(self) -> torch.dtype:
        return getattr(torch, self._effective.compute_dtype)

    def _reader(self, dtype: torch.dtype) -> Mapping[str, Tensor] | BoxCopier:
        """The writing rank's access to the model's weights, with merged adapters: the weights themselves, or a copier
        to ``dtype``, which may be collective."""
        own, adapter = self._own_reader(dtype), self._assembled.plan.adapter
        if adapter is None:
            return own
        return adapter.merged(own if callable(own) else copy_from(own))

    def _own_reader(self, dtype: torch.dtype) -> Mapping[str, Tensor] | BoxCopier:
        """``_reader`` of the weights and the adapters apart."""
        assembled = self._assembled
        if assembled.groups is None:
            return assembled.named_weights
        ranks = None if assembled.pipeline is None else self._ranks
        weights = assembled.plan.weights
        wide = {link.ours for name in weights.kept_in_fp32 for link in weights.links_of_hf[name]}
        return gather_to_writer(assembled.named_weights, ranks, dtype=dtype, kept_in_fp32=wide)

    def _state(self, version: int) -> TrainingState:
        assembled = self._assembled
        optimizer: Mapping[str, Mapping[str, Any]] = self._optimizer.state() if self._optimizer else {}
        spec = assembled.plan.selection.model
        assert spec is not None, "a model was chosen"
        adapter = assembled.plan.selection.adapter
        model = describe_model(
            assembled.plan.hf_config,
            critic=self._config.is_critic,
            name=spec.name,
            adapter=None if adapter is None else adapter.name,
        )
        originals = assembled.trained_weights
        own_state = {name: state for name, state in optimizer.items() if name in originals}
        return TrainingState.of(originals, own_state, {"version": version}, model)

    def _companions(self) -> Path | None:
        """The folder with the model's tokenizer and generation settings, if any."""
        return None if self._config.path is None else checkpoint_folder(self._config.path, weights=False)
