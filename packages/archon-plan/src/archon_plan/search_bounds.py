"""Lower bounds of the time and the memory of a layout, whatever its schedule, checkpointing and micro-batches.

The search looks at layouts in the order of these bounds, and stops at the first bound above the best times found. So
bounds must never exceed the time of a step (``timing``) with any of these options, and should be close to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from archon_core.contracts.pipeline import StagePlan
from archon_core.layout.dims import ParallelDims
from archon_core.models.stage import Stage
from archon_plan.setting import Setting
from archon_plan.sizes import sizes_of
from archon_plan.unit_times import Kind, UnitTimes


@dataclass(frozen=True)
class RankShape:
    """What determines the time of a pipeline rank: how many units of each kind it holds, and those it waits for.

    Attributes:
        held: units of the rank.
        before: units through which a micro-batch passes before the first of them.
        behind: units through which gradients pass after the last of them, unless backward passes are split.
    """

    held: tuple[tuple[Kind, int], ...]
    before: tuple[tuple[Kind, int], ...]
    behind: tuple[tuple[Kind, int], ...]


def rank_shapes(kind_of: Sequence[int], plan: StagePlan, *, splits: bool) -> tuple[RankShape, ...]:
    """The different ranks of a pipeline that may be the slowest.

    Args:
        kind_of: for each layer of the model, its kind.
        plan: the stages.
        splits: whether the schedule splits backward passes.
    """
    counts = [_units(kind_of, stage) for stage in plan.stages]
    # Of ranks that hold the same units, the last one has the most before it.
    shapes: dict[tuple[tuple[Kind, int], ...], RankShape] = {}
    for rank in sorted(set(plan.rank_of)):
        own = plan.held_by(rank)
        before = sum((counts[stage] for stage in range(own[0])), Counter())
        held = _sorted(sum((counts[stage] for stage in own), Counter()))
        shapes[held] = RankShape(held, _sorted(before), () if splits else _sorted(before))
    return tuple(shapes.values())


def _units(kind_of: Sequence[int], stage: Stage) -> Counter[Kind]:
    units: Counter[Kind] = Counter(kind_of[layer] for layer in stage.layers)
    if stage.has_embed:
        units["embed"] += 1
    if stage.has_head:
        units["head"] += 1
    return units


def _sorted(units: Counter[Kind]) -> tuple[tuple[Kind, int], ...]:
    return tuple(sorted(units.items(), key=str))


class Bounds:
    """Bounds for the layouts of one model and one number of sequences.

    Args:
        base: what all settings share, without a pipeline.
        units: times of units.
        sequences: of one step, on all ranks.
        shapes: size of the pipeline -> the ranks of each kind of split.
    """

    def __init__(
        self, base: Setting, units: UnitTimes, sequences: int, shapes: dict[int, tuple[tuple[RankShape, ...], ...]]
    ) -> None:
        self._base, self._units, self._sequences, self._shapes = base, units, sequences, shapes
        self._per_node = units.device.devices_per_node
        self._sizes = sizes_of(base.anatomy)
        self._kinds: tuple[Kind, ...] = (*range(len(base.anatomy.kinds)), "embed", "head")
        self._blocks: dict[tuple[object, ...], tuple[float, float]] = {}
        self._exchanges: dict[tuple[object, ...], tuple[float, float]] = {}
        self._passes: dict[tuple[int, ...], float] = {}
        self._weights: dict[tuple[int, int, int], tuple[float, float]] = {}

    def time(self, dims: ParallelDims) -> float:
        """Seconds that a step takes at least."""
        # Replicas and shards differ in what data ranks exchange, which may take no time.
        data = dims.dp_replicate * dims.dp_shard
        key = dims.pp, data, dims.tp, dims.cp, dims.ep, dims.etp
        if key not in self._passes:
            self._passes[key] = self._time_of_passes(dims, -(-self._sequences // data))
        return self._passes[key] + self._update(dims)

    def _time_of_passes(self, dims: ParallelDims, sequences: int) -> float:
        length = self._base.tokens.sequence
        # One large micro-batch has the least latency and launches, one of a sequence fills the pipeline first.
        whole = {kind: self._of_unit(dims, kind, sequences * length) for kind in self._kinds}
        single = {kind: self._of_unit(dims, kind, length) for kind in self._kinds} if dims.pp > 1 else whole
        best = float("inf")
        for shapes in self._shapes[dims.pp]:
            slowest = 0.0
            for shape in shapes:
                seconds = sum(count * sum(whole[kind]) for kind, count in shape.held)
                seconds += sum(count * single[kind][0] for kind, count in shape.before)
                seconds += sum(count * single[kind][1] for kind, count in shape.behind)
                slowest = max(slowest, seconds)
            best = min(best, slowest)
        return best

    def memory(self, dims: ParallelDims) -> float:
        """Bytes that the busiest rank needs at least: sharded states, and in a pipeline whole gradients and weights."""
        base, elements = self._base, self._elements(dims)
        if base.offloads:
            return 0.0
        stored = base.types.master
        if base.trains:
            states = 2 if base.optimizer in ("adam", "adamw") else int(base.optimizer == "muon" or base.momentum)
            stored += base.types.master + states * base.state_bytes
        if dims.pp == 1 or base.reduces_each or not base.trains:
            return elements * stored
        # Whole gradients are summed over micro-batches while sharded ones do not exist yet.
        sharded = elements * (stored - base.types.master)
        return sharded + self._whole(dims) * (base.types.reduce + base.types.compute)

    def _of_unit(self, dims: ParallelDims, kind: Kind, tokens: int) -> tuple[float, float]:
        """Seconds of the forward and the backward pass of one micro-batch through a unit, without recomputation."""
        world = min(dims.world_size, self._per_node)
        key = kind, dims.tp, dims.cp, tokens, world
        found = self._blocks.get(key)
        if found is None:
            time = self._units.of(self._setting(replace(dims, ep=1, etp=1), tokens), kind)
            backward = sum(time.inputs.values()) + sum(time.weights.values())
            found = self._blocks[key] = sum(time.forward.values()), backward
        if dims.ep * dims.etp == 1:
            return found
        places = kind, dims.ep, dims.etp, -(-tokens // (dims.tp * dims.cp)), world
        exchange = self._exchanges.get(places)
        if exchange is None:
            exchange = self._exchanges[places] = self._units.exchange(self._setting(dims, tokens), kind)
        return found[0] + exchange[0], found[1] + exchange[1]

    def _setting(self, dims: ParallelDims, tokens: int) -> Setting:
        multiple = dims.tp * dims.cp
        padded = -(-tokens // multiple) * multiple
        own = replace(self._base.tokens, per_micro_batch=padded, n_micro_batches=1)
        return replace(self._base, dims=dims, tokens=own, checkpointing="none")

    def _update(self, dims: ParallelDims) -> float:
        base, device = self._base, self._units.device
        if not base.trains:
            return 0.0
        moved = 3 * base.types.master  # of the norm
        if base.optimizer == "sgd":
            moved += 3 * base.types.master
        else:
            moved += 3 * base.types.master + 2 * base.state_bytes
        bandwidth = device.host_bandwidth if base.offloads else device.memory_bandwidth * device.efficiency.memory
        return self._elements(dims) * moved / bandwidth

    def _elements(self, dims: ParallelDims) -> float:
        """Mean elements of a rank."""
        dense, experts = self._model(dims)
        return dense / (dims.dp_shard * dims.cp * dims.pp) + experts / (dims.edp * dims.pp)

    def _whole(self, dims: ParallelDims) -> float:
        """Mean elements of the gathered weights of a rank."""
        dense, experts = self._model(dims)
        return (dense + experts) / dims.pp

    def _model(self, dims: ParallelDims) -> tuple[float, float]:
        """Elements of a tensor rank's and of an expert rank's parts of all layers and ends."""
        key = dims.tp, dims.ep, dims.etp
        if key not in self._weights:
            sizes = self._sizes
            kinds = [sizes.kinds[kind] for kind in sizes.kind_of]
            dense = (sizes.embed + sizes.last_sharded) / dims.tp + sizes.last_replicated
            dense += sum(own.sharded / dims.tp + own.replicated for own in kinds)
            self._weights[key] = dense, sum(own.experts for own in kinds) / (dims.ep * dims.etp)
        return self._weights[key]
