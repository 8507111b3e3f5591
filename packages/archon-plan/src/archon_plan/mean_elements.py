"""How many weights a rank of a layout holds, as a mean over all ranks of a stage and all stages."""

from __future__ import annotations

from archon_core.layout.dims import ParallelDims
from archon_core.models.anatomy import ModelAnatomy
from archon_plan.sizes import sizes_of


class MeanElements:
    """The numbers of elements of one model in its layouts.

    Args:
        anatomy: of the model.
    """

    def __init__(self, anatomy: ModelAnatomy) -> None:
        self._sizes = sizes_of(anatomy)
        self._parts: dict[tuple[int, int], tuple[float, float]] = {}

    def sharded(self, dims: ParallelDims) -> float:
        """Of a rank's shards."""
        dense, experts = self._model(dims)
        return dense / (dims.dp_shard * dims.cp * dims.pp) + experts / (dims.edp * dims.pp)

    def gathered(self, dims: ParallelDims) -> float:
        """Of the gathered weights of a rank's stages."""
        dense, experts = self._model(dims)
        return (dense + experts) / dims.pp

    def of_layers(self, dims: ParallelDims) -> tuple[float, float]:
        """Of a tensor rank's and of an expert rank's parts of all layers."""
        dense, experts = self._model(dims)
        sizes = self._sizes
        return dense - (sizes.embed + sizes.last_sharded) / dims.tp - sizes.last_replicated, experts

    def _model(self, dims: ParallelDims) -> tuple[float, float]:
        """Of a tensor rank's and of an expert rank's parts of all layers and both ends."""
        key = dims.tp, dims.ep * dims.etp
        if key not in self._parts:
            sizes = self._sizes
            kinds = [sizes.kinds[kind] for kind in sizes.kind_of]
            dense = (sizes.embed + sizes.last_sharded) / dims.tp + sizes.last_replicated
            dense += sum(own.sharded / dims.tp + own.replicated for own in kinds)
            self._parts[key] = dense, sum(own.experts for own in kinds) / (dims.ep * dims.etp)
        return self._parts[key]
