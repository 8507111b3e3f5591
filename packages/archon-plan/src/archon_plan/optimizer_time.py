"""How long the gradient norm and the update of the weights take. Both read and write every element of a rank's shards,
so the memory bandwidth bounds them; Muon also multiplies matrices."""

from __future__ import annotations

from functools import lru_cache

from archon_core.models.anatomy import LayerAnatomy
from archon_plan.devices import Device
from archon_plan.setting import Setting
from archon_plan.units import StageUnits

NEWTON_SCHULZ_STEPS = 5
"""Iterations of Muon (``archon_engine.optimizer.muon``)."""


def norm_seconds(setting: Setting, device: Device, units: tuple[StageUnits, ...]) -> float:
    """Reading all gradients for their norm, and scaling them: one read, then one read and one write."""
    elements = sum(stage.total.elements for stage in units)
    return 3 * elements * setting.types.master / _bandwidth(setting, device)


def update_seconds(setting: Setting, device: Device, pipeline_rank: int, units: tuple[StageUnits, ...]) -> float:
    """The optimizer's update of all weights on a rank."""
    total = sum((stage.total for stage in units[1:]), units[0].total)
    master, state = setting.types.master, setting.state_bytes
    plain = total.elements
    seconds = 0.0
    if setting.optimizer == "muon":
        plain -= sum((block.dense.matrices + block.experts.matrices) * block.count for s in units for block in s.blocks)
        # Momentum is read, written and read again, and the update is written once before it is orthogonalised.
        muon = (total.elements - plain) * (5 * master + 3 * state)
        seconds += muon / _bandwidth(setting, device) + _orthogonalise_seconds(setting, device, pipeline_rank)
    if setting.optimizer == "sgd":
        moved = 3 * master + (2 * state if setting.momentum else 0)
    else:
        # Weights and both moments are read and written, gradients are read.
        moved = 3 * master + 4 * state
    return seconds + plain * moved / _bandwidth(setting, device)


def _bandwidth(setting: Setting, device: Device) -> float:
    """Bytes/s between the processor that updates and its memory. An offloaded optimizer runs on the host, whose share
    of memory bandwidth per device is taken to be that of the link between them."""
    return device.host_bandwidth if setting.offloads else device.memory_bandwidth * device.efficiency.memory


def _orthogonalise_seconds(setting: Setting, device: Device, pipeline_rank: int) -> float:
    """Ranks of a pipeline rank share the matrices. On a GPU they iterate in bfloat16 if passes compute in 16 bits."""
    flops = sum(
        _newton_schulz_flops(setting.anatomy.kinds[setting.anatomy.kind_of[layer]])
        for stage in setting.held_by(pipeline_rank)
        for layer in stage.layers
    )
    peak = device.peak(setting.types.compute if device.kind == "gpu" else 4)
    return flops / setting.dims.sharding_size / (peak * device.efficiency.dense)


@lru_cache(maxsize=256)
def _newton_schulz_flops(layer: LayerAnatomy) -> float:
    """FLOPs of orthogonalising all matrices of a layer. With a the shorter and b the longer side, each iteration takes
    the products [a, b] [b, a], [a, a] [a, a] and [a, a] [a, b]."""
    flops = 0.0
    for weight in layer.weights:
        if 2 <= len(weight.shape) <= 3:
            a, b = sorted(weight.shape[-2:])
            number = weight.size // (a * b)
            flops += number * NEWTON_SCHULZ_STEPS * (4 * a * a * b + 2 * a**3)
    return flops
