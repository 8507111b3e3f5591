"""The FSDP2 groups of a pipeline stage, as ``archon_engine.parallel.fsdp.apply_fsdp`` makes them.

Every unit before the blocks is a group, as is every block. The experts of a block are a group inside it. The units
after the blocks form one group. Weights that several units use, such as those of a tied embedding and head on one
stage, are in the root's group, which stays whole during a pass.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache

from archon_core.layout.dims import ParallelDims
from archon_core.models.anatomy import ModelAnatomy, WeightShape
from archon_core.models.stage import Stage
from archon_plan.setting import Setting
from archon_plan.shards import NOTHING, Shards, shards_of
from archon_plan.sizes import Same


@dataclass(frozen=True)
class Block:
    """Equal blocks of a stage.

    Attributes:
        count: how many.
        dense: the group of one block.
        experts: the group of its experts; empty for a dense block.
    """

    count: int
    dense: Shards
    experts: Shards = NOTHING

    @cached_property
    def total(self) -> Shards:
        """Both groups of all these blocks."""
        return (self.dense + self.experts).times(self.count)


@dataclass(frozen=True, eq=False)
class StageUnits:
    """The groups of a stage on one rank, in the order of the forward pass. They compare by identity: equal stages share
    them, and they are keys of caches.

    Attributes:
        root: weights that units share.
        early: the unit before the blocks.
        blocks: the blocks.
        last: the units after them.
    """

    root: Shards = NOTHING
    early: Shards = NOTHING
    blocks: tuple[Block, ...] = ()
    last: Shards = NOTHING

    @cached_property
    def total(self) -> Shards:
        """All groups together."""
        return sum((block.total for block in self.blocks), self.root + self.early + self.last)


def units_of(setting: Setting, pipeline_rank: int, rank: int = 0) -> tuple[StageUnits, ...]:
    """The groups of every stage on a pipeline rank.

    Args:
        setting: what is planned.
        pipeline_rank: which.
        rank: number of the rank inside its pipeline rank; 0 holds the largest parts.
    """
    return tuple(stage_units(setting, stage, rank) for stage in setting.held_by(pipeline_rank))


def stage_units(setting: Setting, stage: Stage, rank: int = 0) -> StageUnits:
    """The groups of one stage. ``rank`` is that of ``units_of``."""
    dims = setting.dims
    # Where data and context ranks are alike, and replicas and other stages do not matter, layouts share their groups.
    sizes = dims.dp_shard * dims.cp, dims.tp, dims.ep, dims.etp
    same = Same(setting.anatomy)
    return _units(same, stage.has_embed, stage.has_head, _kinds(same, stage.layers), sizes, rank)


@lru_cache(maxsize=4096)
def _kinds(same: Same, layers: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Kinds of layers in a stage and how many of each it has."""
    kind_of = same.anatomy.kind_of
    return tuple(sorted(Counter([kind_of[layer] for layer in layers]).items()))


def stage_weights(anatomy: ModelAnatomy, stage: Stage) -> tuple[tuple[WeightShape, ...], tuple[WeightShape, ...]]:
    """The weights of a stage before and after its layers. A tied head on another stage than the embedding has a copy
    of its weight."""
    embed = anatomy.embed if stage.has_embed else ()
    last = anatomy.last if stage.has_head else ()
    if anatomy.tied and stage.has_head and not stage.has_embed:
        last = (*last, *tied_copies(anatomy))
    return embed, last


def tied_copies(anatomy: ModelAnatomy) -> tuple[WeightShape, ...]:
    """The weight of a tied head with its own storage."""
    return tuple(
        WeightShape("head.weight", weight.shape, weight.role, weight.tensor_dim)
        for weight in anatomy.embed
        if weight.name == "embed.weight"
    )


@lru_cache(maxsize=16384)
def _units(
    same: Same,
    has_embed: bool,
    has_head: bool,
    kinds: tuple[tuple[int, int], ...],
    sizes: tuple[int, int, int, int],
    rank: int,
) -> StageUnits:
    anatomy = same.anatomy
    ranks, tp, ep, etp = sizes
    dims = ParallelDims(dp_shard=ranks, tp=tp, ep=ep, etp=etp)
    embed, last = stage_weights(anatomy, Stage((), has_embed, has_head))
    shared: tuple[WeightShape, ...] = ()
    if anatomy.tied and has_embed and has_head:
        shared = tuple(weight for weight in embed if weight.name == "embed.weight")
        embed = tuple(weight for weight in embed if weight not in shared)
    blocks = []
    for kind, count in kinds:
        dense, experts = _split(anatomy.kinds[kind].weights)
        blocks.append(Block(count, shards_of(dense, dims, rank), shards_of(experts, dims, rank)))
    return StageUnits(
        shards_of(shared, dims, rank),
        shards_of(embed, dims, rank),
        tuple(blocks),
        shards_of(last, dims, rank),
    )


@lru_cache(maxsize=1024)
def _split(weights: tuple[WeightShape, ...]) -> tuple[tuple[WeightShape, ...], tuple[WeightShape, ...]]:
    """The weights of a block's own group and of its experts."""
    return (
        tuple(weight for weight in weights if weight.role != "expert"),
        tuple(weight for weight in weights if weight.role == "expert"),
    )
