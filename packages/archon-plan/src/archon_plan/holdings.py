"""Who holds what: for every weight of a pipeline rank, how many elements each of its ranks has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from archon_core.layout.dims import ParallelDims
from archon_core.models.anatomy import WeightShape
from archon_plan.setting import Setting
from archon_plan.shards import elements_per_rank, shards_of
from archon_plan.units import stage_weights


@dataclass(frozen=True)
class Holding:
    """A weight and its shards, or one weight for each of several equal layers.

    Attributes:
        name: as in the module, with ``{layer}`` for the number of a layer.
        layers: the layers that have it; empty outside of layers.
        weight: its whole shape and its role.
        dims: the sizes of the axes that shard it.
    """

    name: str
    layers: tuple[int, ...]
    weight: WeightShape
    dims: ParallelDims

    @cached_property
    def ranks(self) -> Mapping[int, int]:
        """Elements of one such weight -> how many ranks of the pipeline rank hold so many, largest first."""
        return elements_per_rank(self.weight, self.dims)

    @property
    def copies(self) -> int:
        """How many ranks hold each element."""
        return sum(elements * ranks for elements, ranks in self.ranks.items()) // self.weight.size

    def on(self, rank: int) -> int:
        """Elements of one such weight on a rank, by its number inside the pipeline rank."""
        return shards_of((self.weight,), self.dims, rank).elements

    @property
    def count(self) -> int:
        """How many such weights there are."""
        return len(self.layers) or 1


def holdings(setting: Setting, pipeline_rank: int) -> tuple[Holding, ...]:
    """All weights of a pipeline rank, in the order of the forward pass; equal layers are one entry."""
    return tuple(_holdings(setting, pipeline_rank))


def _holdings(setting: Setting, pipeline_rank: int) -> Iterator[Holding]:
    anatomy, dims, stages = setting.anatomy, setting.dims, setting.held_by(pipeline_rank)
    ends = [stage_weights(anatomy, stage) for stage in stages]
    yield from (Holding(weight.name, (), weight, dims) for before, _ in ends for weight in before)
    kinds: dict[int, list[int]] = {}
    for stage in stages:
        for layer in stage.layers:
            kinds.setdefault(anatomy.kind_of[layer], []).append(layer)
    for kind, layers in kinds.items():
        for weight in anatomy.kinds[kind].weights:
            yield Holding(f"layers.{{layer}}.{weight.name}", tuple(layers), weight, dims)
    yield from (Holding(weight.name, (), weight, dims) for _, after in ends for weight in after)
