"""Which rank holds what: stages per pipeline rank, and parts of heads, vocabulary and experts per class of ranks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from archon_core.models.box import chunk_of
from archon_plan.extents import expert_extents
from archon_plan.setting import Setting

MOST_CLASSES = 64
"""Most classes of ranks to name; larger layouts repeat the pattern."""


@dataclass(frozen=True)
class PipelineRank:
    """The ranks of one pipeline rank.

    Attributes:
        number: which.
        ranks: their numbers.
        stages: (stage, its layers) of each, in the order of the forward pass.
        has_embed: whether one of them has the embedding.
        has_head: whether one of them has the final norm and the head.
        parameters: of its stages, in all ranks together.
    """

    number: int
    ranks: range
    stages: tuple[tuple[int, range], ...]
    has_embed: bool
    has_head: bool
    parameters: int


@dataclass(frozen=True)
class RankClass:
    """Ranks of one pipeline rank with the same part of the model before sharding over data ranks.

    Attributes:
        ranks: their numbers, counted from the first rank of the pipeline rank.
        query_heads: of the first layer.
        vocabulary: rows of the embedding and the head.
        experts: of a layer with experts; empty without.
        expert_columns: of the width inside an expert; empty without experts.
    """

    ranks: tuple[int, ...]
    query_heads: range
    vocabulary: range
    experts: range
    expert_columns: range


@dataclass(frozen=True)
class Placement:
    """What the ranks of a layout hold.

    Attributes:
        pipeline: one entry per pipeline rank.
        classes: of the ranks of one pipeline rank; all pipeline ranks are alike.
        dense_parts: number of data and context ranks that shard each dense weight.
        expert_parts: number of ranks that shard each expert weight.
    """

    pipeline: tuple[PipelineRank, ...]
    classes: tuple[RankClass, ...]
    dense_parts: int
    expert_parts: int


def find_placement(setting: Setting) -> Placement:
    """Who holds what."""
    dims = setting.dims
    return Placement(
        pipeline=tuple(_pipeline_rank(setting, number) for number in range(dims.pp)),
        classes=_classes(setting),
        dense_parts=dims.dp_shard * dims.cp,
        expert_parts=dims.edp,
    )


def _pipeline_rank(setting: Setting, number: int) -> PipelineRank:
    anatomy, plan, size = setting.anatomy, setting.stage_plan, setting.dims.stage_size
    stages = [(index, plan.stages[index]) for index in plan.held_by(number)]
    has_embed = any(stage.has_embed for _, stage in stages)
    has_head = any(stage.has_head for _, stage in stages)
    layers = [layer for _, stage in stages for layer in stage.layers]
    sizes = [kind.size for kind in anatomy.kinds]
    parameters = sum(sizes[anatomy.kind_of[layer]] for layer in layers)
    parameters += sum(weight.size for weight in anatomy.embed) if has_embed else 0
    parameters += sum(weight.size for weight in anatomy.last) if has_head else 0
    if anatomy.tied and has_head and not has_embed:  # the last stage has a copy of the embedding's weight
        parameters += sum(weight.size for weight in anatomy.embed)
    return PipelineRank(
        number=number,
        ranks=range(number * size, (number + 1) * size),
        stages=tuple((index, _range_of(stage.layers)) for index, stage in stages),
        has_embed=has_embed,
        has_head=has_head,
        parameters=parameters,
    )


def _range_of(layers: tuple[int, ...]) -> range:
    return range(layers[0], layers[-1] + 1) if layers else range(0)


def _classes(setting: Setting) -> tuple[RankClass, ...]:
    dims, anatomy = setting.dims, setting.anatomy
    heads = anatomy.attention.heads.query
    n_experts, inner = expert_extents(anatomy)
    by_place: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for rank in range(dims.stage_size):
        # The axes of dense parameters end in tp, those of experts in ep, etp (``ParallelDims``).
        place = rank % dims.tp, rank // dims.etp % dims.ep, rank % dims.etp
        if place in by_place or len(by_place) < MOST_CLASSES:
            by_place[place].append(rank)
    return tuple(
        RankClass(
            ranks=tuple(ranks),
            query_heads=chunk_of(heads, dims.tp, tensor),
            vocabulary=chunk_of(anatomy.vocab_size, dims.tp, tensor),
            experts=chunk_of(n_experts, dims.ep, expert),
            expert_columns=chunk_of(inner, dims.etp, column),
        )
        for (tensor, expert, column), ranks in by_place.items()
    )
