"""Memory of a rank at the peak of a step: states, activations and overhead together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from archon_plan.activations import IMBALANCE, ActivationMoment, activation_moments, moment_parts
from archon_plan.moment import Moment
from archon_plan.moments import moments
from archon_plan.results import MemoryPart, RankMemory
from archon_plan.setting import Setting
from archon_plan.states import held, state_parts

if TYPE_CHECKING:
    from archon_plan.devices import Device


def rank_memory(
    setting: Setting,
    pipeline_rank: int,
    device: Device | None = None,
    *,
    publication: float = 0.0,
    imbalance: float = IMBALANCE,
) -> RankMemory:
    """Memory of the rank with the largest shards of a pipeline rank, at the moment of a step that needs most.

    Args:
        setting: what is planned.
        pipeline_rank: which.
        device: whose context, communicators and allocator take memory; ``None`` leaves this overhead out.
        publication: bytes on the device of the buckets in which weights are published between two steps.
        imbalance: rows of the busiest rank of experts over the mean.

    Raises:
        ConfigError: the optimizer is unknown.
    """
    found = moments(setting, pipeline_rank)
    if publication:
        found = (*found, _publication(found[-1], publication))
    on_cpu = device is not None and device.kind == "cpu"
    activations = activation_moments(setting, pipeline_rank, imbalance=imbalance, on_cpu=on_cpu)
    moment, live = max(
        ((moment, _live(moment, activations)) for moment in found), key=lambda pair: pair[0].total + pair[1].total
    )
    parts = (*state_parts(setting, pipeline_rank, moment), *moment_parts(setting, live))
    return RankMemory(pipeline_rank, (*parts, *overhead_parts(setting, parts, device)))


def whole_memory(setting: Setting, device: Device | None = None, *, publication: float = 0.0) -> tuple[RankMemory, ...]:
    """``rank_memory`` of every pipeline rank."""
    return tuple(rank_memory(setting, rank, device, publication=publication) for rank in range(setting.dims.pp))


def host_memory(setting: Setting, pipeline_rank: int) -> float:
    """Bytes of host memory for the states of one rank: 0 unless they are offloaded."""
    return float(held(setting, pipeline_rank).total) if setting.offloads else 0.0


def communicators(setting: Setting) -> tuple[str, ...]:
    """The groups for which a rank has a communicator. NCCL creates one with a group's first collective, so a group of
    one rank has none.

    Dense parameters and experts have separate meshes (``archon_engine.mesh``), so their replicas are two groups.
    """
    dims = setting.dims
    sizes = {
        "world": dims.world_size,
        "pipeline": dims.pp,
        "stage": dims.stage_size if dims.pp > 1 else 1,
        "replicas": dims.dp_replicate,
        "data ranks": dims.dp_shard * dims.cp,
        "context ranks": dims.cp,
        "tensor ranks": dims.tp,
    }
    if setting.anatomy.has_experts:
        sizes |= {
            "replicas of experts": dims.dp_replicate,
            "data ranks of experts": dims.edp,
            "expert ranks": dims.ep * dims.etp,
        }
    return tuple(name for name, size in sizes.items() if size > 1)


def overhead_parts(setting: Setting, parts: Sequence[MemoryPart], device: Device | None) -> tuple[MemoryPart, ...]:
    """Memory beside tensors: the device's context, communicators, and what the allocator holds beyond ``parts``.

    The figures and their sources are the device's (``archon_plan.device_table``).
    """
    if device is None:
        return ()
    groups = communicators(setting)
    live = sum(part.bytes for part in parts)
    found = (
        MemoryPart("context", device.context_bytes, device.name),
        MemoryPart("communicators", len(groups) * device.communicator_bytes, ", ".join(groups)),
        MemoryPart("allocator", live * device.allocator_share, f"{device.allocator_share:.0%} of live tensors"),
    )
    return tuple(part for part in found if part.bytes)


def _publication(step_end: Moment, buckets: float) -> Moment:
    """Weights are published between two steps. Gradients live until the next one begins."""
    return Moment("publication", "kept", gradients=step_end.gradients, published=buckets, kept=0.0)


def _live(moment: Moment, found: Sequence[ActivationMoment]) -> ActivationMoment:
    """The activations that live at a moment of the states."""
    largest = max(found, key=lambda activations: activations.total)
    if moment.activations == "kept":
        live = ActivationMoment(kept=largest.kept, dispatched=largest.dispatched, shared=largest.shared)
    else:
        live = next((activations for activations in found if activations.place == moment.activations), largest)
    if moment.kept == 1.0:
        return live
    shared = live.shared if moment.kept else 0.0
    kept = shared + (live.kept - live.shared) * moment.kept
    return replace(live, kept=kept, dispatched=live.dispatched * moment.kept)
