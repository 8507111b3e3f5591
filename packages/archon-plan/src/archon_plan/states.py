"""Memory of a rank's parameters, gradients and optimizer states, and of what FSDP2 allocates around them."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.errors import ConfigError
from archon_plan.moment import Moment
from archon_plan.moments import moments
from archon_plan.results import MemoryPart
from archon_plan.setting import Setting
from archon_plan.shards import NOTHING, Shards
from archon_plan.units import units_of

STEP_BYTES = 4
"""Adam counts steps in an fp32 scalar per parameter."""


@dataclass(frozen=True)
class Held:
    """Bytes of what a rank keeps between steps, and of the gradients at the end of a backward pass.

    Attributes:
        parameters: the shards that the optimizer updates.
        gradients: of these; 0 without training.
        optimizer: its states; 0 without training.
    """

    parameters: int
    gradients: int = 0
    optimizer: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer


def held(setting: Setting, pipeline_rank: int, rank: int = 0) -> Held:
    """What one rank holds, exactly, on the device or, with ``offloads``, on the host.

    Parameters and gradients of the last data ranks have the storage of the largest part, to which FSDP2 pads them;
    optimizer states do not.

    Args:
        setting: what is planned.
        pipeline_rank: which.
        rank: number of the rank inside its pipeline rank (``archon_plan.shards``); 0 holds the largest parts.

    Raises:
        ConfigError: the optimizer is unknown.
    """
    total = sum((units.total for units in units_of(setting, pipeline_rank, rank)), NOTHING)
    weights = total.stored * setting.types.master
    if not setting.trains:
        return Held(weights)
    # Without a cast, the gradients are views of what the reduce-scatter returns.
    return Held(weights, weights, _optimizer_bytes(setting, total, _matrices(setting, pipeline_rank, rank)))


def state_parts(setting: Setting, pipeline_rank: int, moment: Moment | None = None) -> tuple[MemoryPart, ...]:
    """Memory on the device of the rank with the largest shards, without activations and overhead. Parts of 0 bytes are
    left out.

    Args:
        setting: what is planned.
        pipeline_rank: which.
        moment: one of ``archon_plan.moments.moments``; ``None`` for the largest of those with all
            activations.

    Raises:
        ConfigError: the optimizer is unknown.
    """
    if moment is None:
        with_activations = [found for found in moments(setting, pipeline_rank) if found.activations != "kept"]
        moment = max(with_activations, key=lambda found: found.total)
    kept = held(setting, pipeline_rank)
    parts = []
    if not setting.offloads:
        parts.append(MemoryPart("parameters", kept.parameters, _shared_by(setting)))
        if setting.trains:
            parts.append(MemoryPart("optimizer", kept.optimizer, setting.optimizer))
    for name, size, note in (
        ("gradients", moment.gradients, "sharded"),
        ("accumulated gradients", moment.accumulated, "unsharded, until the step reduces them"),
        ("unsharded weights", moment.weights, "with buffers of all-gathers"),
        ("gradients being reduced", moment.reductions, "unsharded, with inputs of reduce-scatters"),
        ("buffers of the update", moment.buffers, setting.optimizer),
        ("buckets of weights", moment.published, "between two steps"),
    ):
        if size:
            parts.append(MemoryPart(name, size, note))
    return tuple(parts)


def _shared_by(setting: Setting) -> str:
    ranks = setting.dims.dp_shard * setting.dims.cp
    return f"sharded over {ranks} data ranks" if ranks > 1 else ""


def _matrices(setting: Setting, pipeline_rank: int, rank: int) -> Shards:
    """The weights that Muon updates: matrices of layers, stacked experts among them."""
    blocks = (block for units in units_of(setting, pipeline_rank, rank) for block in units.blocks)
    return sum((block.total for block in blocks), NOTHING)


def _optimizer_bytes(setting: Setting, total: Shards, layers: Shards) -> int:
    bytes_each = setting.state_bytes
    match setting.optimizer:
        case "adamw" | "adam":
            return 2 * total.elements * bytes_each + total.tensors * STEP_BYTES
        case "sgd":
            return total.elements * bytes_each if setting.momentum else 0
        case "muon":
            others = total.elements - layers.matrices
            steps = (total.tensors - layers.matrix_tensors) * STEP_BYTES
            return (layers.matrices + 2 * others) * bytes_each + steps
    raise ConfigError(
        f"optimizer.type: found {setting.optimizer!r}; allowed are adam, adamw, sgd and muon; choose one of them"
    )
