"""What an engine writes of itself and reads back: weights for others, and the state in which its training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from archon_core.checkpoint.dcp import TrainingState, describe_model, load_training_state
from archon_core.checkpoint.gathering import WRITER, gather_to_writer
from archon_core.checkpoint.hf_saving import prepare_folder, save_hf_weights
from archon_core.checkpoint.parts import HostCopies
from archon_core.config.decisions import Decision
from archon_core.config.schema import EngineConfig
from archon_core.distributed.failing_together import failing_together
from archon_core.distributed.ranks import Ranks
from archon_core.engine.assembly import Assembled, load_weights
from archon_core.engine.effective import EffectiveConfig
from archon_core.engine.optimizer import NamedOptimizer
from archon_core.errors import WeightsError
from archon_core.models.hf_config import checkpoint_folder


class EngineCheckpoints:
    """Saves and loads one engine. Every method but ``stage`` is collective.

    Args:
        config: the section of the configuration that describes the model.
        effective: what was made of its options.
        assembled: the model.
        optimizer: its optimizer; ``None`` for a model that is not trained.
        ranks: all processes of the engine.
        role: the section's name, for messages.
        seed: the run's seed, for weights that a checkpoint lacks.
    """

    def __init__(
        self,
        config: EngineConfig,
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

    def save_hf(self, folder: Path) -> None:
        """Write weights, configuration and what belongs to them in Hugging Face's form.

        Raises:
            WeightsError: on every rank, weights are there already, or could not be written.
        """
        assembled, is_writer = self._assembled, self._ranks.rank == WRITER
        with failing_together(self._ranks):
            if is_writer:
                prepare_folder(folder)
        # Ranks send and receive inside. This kind is raised when all has been sent; another, by a rank that others
        # wait for: it has to end.
        with failing_together(self._ranks, kind=WeightsError):
            save_hf_weights(
                assembled.named_weights if assembled.groups is None else gather_to_writer(assembled.named_weights),
                assembled.weights,
                folder,
                assembled.hf_config,
                dtype=getattr(torch, self._effective.compute_dtype),
                critic=self._config.is_critic,
                companions_from=self._companions(),
                write=is_writer,
            )

    def save_dcp(self, folder: Path, *, version: int) -> None:
        """Write weights, optimizer state and ``version``.

        Raises:
            WeightsError: on every rank, a part could not be written.
        """
        self._state(version).write(folder, self._ranks)

    def stage(self, *, version: int) -> TrainingState:
        """What ``save_dcp`` would write now, copied to the host. The copies last until the next call."""
        state = self._state(version)
        return replace(state, parts=self._host_copies.of(state.parts))

    def load_hf(self, folder: Path) -> list[Decision]:
        """Read weights in Hugging Face's form; see ``assembly.load_weights``."""
        return load_weights(self._assembled, folder, role=self._role, seed=self._seed)

    def load_dcp(self, folder: Path) -> tuple[int, list[Decision]]:
        """Read what ``save_dcp`` wrote: the version, and what was done otherwise than usual.

        Raises:
            WeightsError: on every rank, it is damaged or does not fit; weights and optimizer state may be of neither
                run then, so load something whole before the engine goes on.
        """
        if self._optimizer is not None:
            self._optimizer.clear_state()  # or there would be memory for two for a while
        state, counters, decisions = load_training_state(folder, self._assembled.parameters)
        if self._optimizer is not None:
            self._optimizer.load_state(state)
        return counters["version"], decisions

    def _state(self, version: int) -> TrainingState:
        assembled = self._assembled
        optimizer: Mapping[str, Mapping[str, Any]] = self._optimizer.state() if self._optimizer else {}
        model = describe_model(assembled.hf_config, critic=self._config.is_critic, name=assembled.spec.name)
        return TrainingState.of(assembled.parameters, optimizer, {"version": version}, model)

    def _companions(self) -> Path | None:
        """The folder whose tokenizer and generation settings belong to the weights, when there is one."""
        return None if self._config.path is None else checkpoint_folder(self._config.path, weights=False)
