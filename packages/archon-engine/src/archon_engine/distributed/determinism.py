"""Deterministic mode: the settings that make two runs of one configuration bit-identical.

The settings are process-wide, and most are read once: by NCCL when it creates a group, by cuBLAS with its first kernel.
So they are set before any process group exists, for every engine of the process, and never reset. torch is imported
where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError

ENVIRONMENT: Mapping[str, str] = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NCCL_ALGO": "Ring",
    "TORCHINDUCTOR_DETERMINISTIC": "1",  # what torch 2.13 reads
    "TORCH_COMPILE_DETERMINISTIC": "1",
}
"""The environment variables of deterministic mode, with their values."""


def set_deterministic(environment: MutableMapping[str, str] = os.environ) -> None:
    """Switch this process to deterministic algorithms. Call it before any process group exists."""
    import torch

    environment.update(ENVIRONMENT)
    # warn_only, because users cannot replace operations without a deterministic form. The call also switches an
    # Inductor that was imported before, and has already read its variables.
    torch.use_deterministic_algorithms(True, warn_only=True)


def is_deterministic(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether deterministic mode is on in this process."""
    import torch

    return torch.are_deterministic_algorithms_enabled() and ENVIRONMENT.items() <= environment.items()


def ensure_deterministic(*, option: str) -> None:
    """Switch deterministic mode on for an engine that needs it.

    Args:
        option: dotted name of the engine's option, for the message.

    Raises:
        ConfigError: a process group exists already, created without deterministic mode.
    """
    import torch.distributed as dist

    if is_deterministic():
        return
    if dist.is_available() and dist.is_initialized():
        raise ConfigError(
            f"{option}: found true, but the process group was created without it; NCCL and cuBLAS read these settings "
            "once; call archon_engine.distributed.determinism.set_deterministic() before init_process_group "
            f"(archon train does), or set {option}=false"
        )
    set_deterministic()


def deterministic_effects(option: str) -> list[Decision]:
    """The effects of deterministic mode, as decisions about ``option``."""

    def variables(*names: str) -> str:
        return ", ".join(f"{name}={ENVIRONMENT[name]}" for name in names)

    effects = {
        "torch.use_deterministic_algorithms(True, warn_only=True)": "operations with a deterministic form use it",
        variables("CUBLAS_WORKSPACE_CONFIG"): "cuBLAS uses its workspaces in a fixed order",
        variables("NCCL_ALGO"): "NCCL sums in an order that its tuning cannot change",
        variables("TORCHINDUCTOR_DETERMINISTIC", "TORCH_COMPILE_DETERMINISTIC"): (
            "Inductor chooses kernels without timing them"
        ),
        "preserve_rng_state=True": "recomputed blocks draw the random numbers of their first pass",
    }
    return [Decision(option, "true", effect, reason) for effect, reason in effects.items()]
