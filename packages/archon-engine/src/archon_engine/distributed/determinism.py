"""Deterministic mode: the settings that make two runs of one configuration bit-identical.

They are process-wide, and most are read once: by NCCL when a group is made, by cuBLAS with its first kernel. So they
are set before any process group exists, for every engine of the process, and never unset. Imports torch where it is
used.
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
"""Variables and their values."""


def set_deterministic(environment: MutableMapping[str, str] = os.environ) -> None:
    """Switch this process to deterministic algorithms. Call it before any process group exists."""
    import torch

    environment.update(ENVIRONMENT)
    # Only a warning for operations without a deterministic form: there is nothing that a user could put in their place.
    # It switches an Inductor over that was imported before, and so has read its variables.
    torch.use_deterministic_algorithms(True, warn_only=True)


def is_deterministic(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether ``set_deterministic`` holds in this process."""
    import torch

    return torch.are_deterministic_algorithms_enabled() and ENVIRONMENT.items() <= environment.items()


def ensure_deterministic(*, option: str) -> None:
    """Set deterministic mode for an engine that asks for it, unless it is too late.

    Args:
        option: dotted name of the option that asks for it, for the message.

    Raises:
        ConfigError: a process group exists already, made without the settings.
    """
    import torch.distributed as dist

    if is_deterministic():
        return
    if dist.is_available() and dist.is_initialized():
        raise ConfigError(
            f"{option}: found true, and a process group that was made without it; NCCL and cuBLAS read it once: call "
            "archon_engine.distributed.determinism.set_deterministic() before init_process_group (archon train does), "
            f"or set {option}=false"
        )
    set_deterministic()


def deterministic_effects(option: str) -> list[Decision]:
    """Each effect of the mode as a decision about ``option``."""

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
