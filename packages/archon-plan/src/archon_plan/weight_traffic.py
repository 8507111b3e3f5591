"""Traffic of sharded weights: FSDP2 gathers them for every pass, and reduces their gradients.

Padding is included: FSDP2 pads dim 0 of every weight to equal shards, and sends the padding.
"""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.contracts.pipeline import Action, ActionKind
from archon_plan.ledger import Group, Ledger
from archon_plan.setting import Setting
from archon_plan.shards import Shards
from archon_plan.units import units_of


def add_weights(ledger: Ledger, setting: Setting, pipeline_rank: int) -> None:
    """Add the gathers of weights and the reductions of gradients of the stages on a pipeline rank."""
    stages = setting.stage_plan.held_by(pipeline_rank)
    for stage, units in zip(stages, units_of(setting, pipeline_rank), strict=True):
        early, last = _gathers(setting, stage)
        reductions = _reductions(setting)
        for group, axis, count, gathers in (
            (units.early, "fsdp", 1, early),
            *((block.dense, "fsdp", block.count, early) for block in units.blocks),
            *((block.experts, "edp", block.count, early) for block in units.blocks),
            (units.last, "fsdp", 1, last),
            (units.root, "fsdp", 1, last),
        ):
            if group.tensors:
                _add_group(ledger, setting, Group.of(axis, setting.dims), group, count, gathers, reductions)


def _add_group(
    ledger: Ledger, setting: Setting, ranks: Group, weights: Shards, count: int, gathers: int, reductions: int
) -> None:
    types = setting.types
    whole = weights.stored * ranks.size
    ledger.add(ranks, "all_gather", "weights", whole * types.compute, count * gathers, overlaps=True)
    # A pipeline reduces after its passes, when no computation of the stage is left to run beside it.
    overlaps = setting.dims.pp == 1
    ledger.add(ranks, "reduce_scatter", "gradients", whole * types.reduce, count * reductions, overlaps=overlaps)
    replicas = Group.of("dp_replicate", setting.dims)
    shard = weights.stored * types.reduce
    ledger.add(replicas, "all_reduce", "gradients", shard, count * reductions, overlaps=overlaps)


def _reductions(setting: Setting) -> int:
    """How often the gradients of each group are reduced in a step."""
    if not setting.trains:
        return 0
    return 1 if setting.dims.pp > 1 and not setting.reduces_each else setting.tokens.n_micro_batches


def _gathers(setting: Setting, stage: int) -> tuple[int, int]:
    """How often groups are gathered in a step: those before the last units, and the last units."""
    n = setting.tokens.n_micro_batches
    if not setting.trains:
        return n if setting.reshards else 1, n if setting.reshards_last else 1
    if setting.dims.pp == 1:
        # Freed after every backward pass, and where they reshard also after every forward pass.
        return 2 * n if setting.reshards else n, 2 * n if setting.reshards_last else n
    if not (setting.reshards or setting.reshards_last):
        return 1, 1
    actions = [action for own in setting.actions for action in own if action.stage == stage]
    return _gathers_of(actions, setting.reshards), _gathers_of(actions, setting.reshards_last)


def _gathers_of(actions: Iterable[Action], freed_after_forward: bool) -> int:
    """How often a stage's group is gathered if backward passes free it."""
    is_whole, gathers = False, 0
    for action in actions:
        if action.kind is ActionKind.BACKWARD_WEIGHT:
            continue  # it needs no weights
        gathers += not is_whole
        is_whole = action.kind is ActionKind.FORWARD and not freed_after_forward
    return gathers
