"""Traffic of sharded weights: FSDP2 gathers them for every pass, and reduces their gradients.

Padding is included: FSDP2 pads dim 0 of every weight to equal shards, and sends the padding.
"""

from __future__ import annotations

from collections.abc import Iterator

from archon_plan.ledger import Group, Ledger
from archon_plan.pipelined_weights import StageActions, count_gathers, count_reductions
from archon_plan.results import Axis
from archon_plan.setting import Setting
from archon_plan.shards import Shards
from archon_plan.units import StageUnits, units_of


def add_weights(ledger: Ledger, setting: Setting, pipeline_rank: int) -> None:
    """Add the gathers of weights and the reductions of gradients of the stages on a pipeline rank."""
    numbers = setting.stage_plan.held_by(pipeline_rank)
    for number, units in zip(numbers, units_of(setting, pipeline_rank), strict=True):
        reductions = _reductions(setting, number)
        for weights, axis, groups, gathers in _groups(setting, number, units):
            if weights.tensors:
                ranks = Group.of(axis, setting.dims)
                _add_group(ledger, setting, ranks, weights, gathers=gathers, reductions=groups * reductions)


def _add_group(
    ledger: Ledger, setting: Setting, ranks: Group, weights: Shards, *, gathers: int, reductions: int
) -> None:
    types = setting.types
    whole = weights.stored * ranks.size
    ledger.add(ranks, "all_gather", "weights", whole * types.compute, gathers, overlaps=True)
    # A pipeline reduces after its passes, when no computation of the stage is left to run beside it.
    overlaps = setting.dims.pp == 1
    ledger.add(ranks, "reduce_scatter", "gradients", whole * types.reduce, reductions, overlaps=overlaps)
    replicas = Group.of("dp_replicate", setting.dims)
    ledger.add(replicas, "all_reduce", "gradients", weights.stored * types.reduce, reductions, overlaps=overlaps)


def _reductions(setting: Setting, stage: int) -> int:
    """How often the gradients of each group of a stage are reduced in a step."""
    n = setting.tokens.n_micro_batches
    if not setting.trains:
        return 0
    if setting.dims.pp == 1:
        return n
    if not setting.reduces_each:
        return 1
    splits = setting.schedule is not None and setting.schedule.splits_backward
    return count_reductions(StageActions.of(setting, stage)) if splits else n


def _groups(setting: Setting, stage: int, units: StageUnits) -> Iterator[tuple[Shards, Axis, int, int]]:
    """The groups of a stage: weights of one group, its axis, the number of equal groups, and gathers of all of them."""
    if setting.trains and setting.dims.pp > 1 and (setting.reshards or setting.reshards_last):
        yield from _pipelined(setting, stage, units)
        return
    early, last = (_gathers(setting, frees) for frees in (setting.reshards, setting.reshards_last))
    yield units.early, "fsdp", 1, early
    for block in units.blocks:
        yield block.dense, "fsdp", block.count, block.count * early
        yield block.experts, "edp", block.count, block.count * early
    yield units.last, "fsdp", 1, last
    yield units.root, "fsdp", 1, last


def _gathers(setting: Setting, frees: bool) -> int:
    """How often a group is gathered in a step, by whether forward passes free it."""
    n = setting.tokens.n_micro_batches
    if setting.trains and setting.dims.pp == 1:
        return 2 * n if frees else n  # every backward pass frees it
    return n if frees else 1


def _pipelined(setting: Setting, stage: int, units: StageUnits) -> Iterator[tuple[Shards, Axis, int, int]]:
    """The groups of a stage of a pipeline in which every pass frees weights."""
    gathers = count_gathers(StageActions.of(setting, stage))
    yield units.early, "fsdp", 1, gathers.unit
    layers = setting.layers_of(setting.stage_plan.stages[stage])
    for kind, block in zip(sorted({kind for kind, _ in layers}), units.blocks, strict=True):
        again = layers[kind, True]
        yield block.dense, "fsdp", block.count, again * gathers.recomputed + (block.count - again) * gathers.unit
        yield block.experts, "edp", block.count, block.count * gathers.experts
    yield units.last, "fsdp", 1, gathers.unit
