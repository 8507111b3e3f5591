"""Moves an idle engine to host memory and back, to free the device for another model or for generation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from archon_core.errors import TrainingError
from archon_engine.optimizer.named_optimizer import NamedOptimizer
from archon_engine.parallel.fsdp import FsdpGroups

HOST = torch.device("cpu")


class Residence:
    """Moves an engine's weights and optimizer state between device and host, and tracks where they are.

    Args:
        module: the model, sharded by FSDP2 or not.
        groups: its FSDP2 groups; ``None`` without FSDP2.
        optimizer: ``None`` for a model that is not trained.
        role: the engine's name, for messages.
    """

    def __init__(
        self, module: nn.Module, groups: FsdpGroups | None, optimizer: NamedOptimizer | None, *, role: str
    ) -> None:
        self._module = module
        self._groups = groups
        self._optimizer = optimizer
        self._role = role
        self._is_offloaded = False
        [self._device] = {parameter.device for parameter in module.parameters()}
        # With ``offload_params`` only buffers are on the device. They are small and stay there.
        self._keeps_parameters_on_host = self._device == HOST and any(
            buffer.device != HOST for buffer in module.buffers()
        )
        self._moved: list[tuple[dict[str, Any], str, torch.device]] = []

    def require_onload(self) -> None:
        """Raise TrainingError while the engine is offloaded, even on a CPU, where nothing moves."""
        if self._is_offloaded:
            raise TrainingError(f"engine {self._role!r}: found it offloaded to host memory; call onload() first")

    def offload(self) -> None:
        """Move everything to host memory and drop gradients. Idempotent, not collective."""
        if self._is_offloaded:
            return
        if self._groups is not None:
            self._groups.end_forward_passes()
        for parameter in self._module.parameters():
            parameter.grad = None
        if not self._keeps_parameters_on_host:
            self._module.to(HOST)
        if self._optimizer is not None:
            self._optimizer.follow_parameters()
            self._moved = [
                (state, key, value.device)
                for state in self._optimizer.states()
                for key, value in state.items()
                if isinstance(value, Tensor) and value.device != HOST
            ]
            for state, key, _ in self._moved:
                state[key] = state[key].to(HOST)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._is_offloaded = True

    def onload(self) -> None:
        """Move everything back to its device. Idempotent, not collective."""
        if not self._is_offloaded:
            return
        if not self._keeps_parameters_on_host:
            self._module.to(self._device)
        if self._optimizer is not None:
            self._optimizer.follow_parameters()
        for state, key, device in self._moved:
            state[key] = state[key].to(device)
        self._moved = []
        self._is_offloaded = False
