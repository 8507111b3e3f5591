"""Lower bounds of the time and the memory of a layout, whatever its schedule, checkpointing and micro-batches.

The search looks at layouts in the order of these bounds, and stops at the first bound above the best times found. So
bounds must never exceed the time of a step (``timing``) with any of these options, and should be close to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from archon_core.contracts.pipeline import StagePlan
from archon_core.layout.dims import ParallelDims
from archon_core.models.stage import Stage
from archon_plan.collectives import seconds_of
from archon_plan.layout_space import micro_batch_numbers
from archon_plan.results import Axis, Collective, Transfer
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
        stages: of the whole pipeline.
    """

    held: tuple[tuple[Kind, int], ...]
    before: tuple[tuple[Kind, int], ...]
    behind: tuple[tuple[Kind, int], ...]
    stages: int


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
        shapes[held] = RankShape(held, _sorted(before), () if splits else _sorted(before), len(plan))
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


def _numbers(sequences: int, n_stages: int, n_ranks: int) -> set[int]:
    """Numbers of micro-batches that the search tries, with any schedule of so many stages."""
    return {
        *micro_batch_numbers(sequences, n_stages, 1),
        *micro_batch_numbers(sequences, n_stages, n_ranks),
    }


_PassSeconds = tuple[float, float, float, float]
"""Seconds of forward and backward passes, and of computation in each."""


def _sum(parts: Iterable[tuple[_PassSeconds, int]]) -> _PassSeconds:
    found = [0.0] * 4
    for seconds, count in parts:
        for place, each in enumerate(seconds):
            found[place] += count * each
    return found[0], found[1], found[2], found[3]


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
        self._bandwidth = units.device.memory_bandwidth * units.device.efficiency.memory
        self._sizes = sizes_of(base.anatomy)
        self._kinds: tuple[Kind, ...] = (*range(len(base.anatomy.kinds)), "embed", "head")
        self._blocks: dict[tuple[object, ...], _PassSeconds] = {}
        self._exchanges: dict[tuple[object, ...], tuple[float, float]] = {}
        self._passes: dict[tuple[int, ...], _PassSeconds] = {}
        self._weights: dict[tuple[int, int, int], tuple[float, float]] = {}
        self._links: dict[tuple[object, ...], float] = {}

    def time(self, dims: ParallelDims) -> float:
        """Seconds that a step takes at least."""
        # Replicas and shards differ only in what data ranks exchange and update.
        data = dims.dp_replicate * dims.dp_shard
        key = dims.pp, data, dims.tp, dims.cp, dims.ep, dims.etp
        if key not in self._passes:
            self._passes[key] = self._of_passes(dims, -(-self._sequences // data))
        forward, backward, forward_work, backward_work = self._passes[key]
        gather, reduce = self._data_traffic(dims)
        # What exceeds the computation beside it cannot be hidden. A pipeline gathers once, and reduces at the end.
        unpacked, packed = self._copies(dims)
        forward += max(0.0, gather - forward_work) + unpacked
        if self._base.trains and dims.pp == 1:
            backward += max(0.0, reduce - backward_work) + unpacked + packed
        elif self._base.trains:
            # Behind the passes of the slowest rank, which has at least as many layers as the one with the fewest.
            backward += (reduce - gather) * self._least_share(dims.pp)
        return forward + backward + self._update(dims)

    def _of_passes(self, dims: ParallelDims, sequences: int) -> _PassSeconds:
        """Seconds of the slowest rank with the best schedule, and the work beside which weights are gathered and
        gradients reduced."""
        length = self._base.tokens.sequence
        if dims.pp == 1:
            [[shape]] = self._shapes[1]
            return _sum((self._of_unit(dims, kind, sequences * length), count) for kind, count in shape.held)
        best = float("inf")
        for shapes in self._shapes[dims.pp]:
            for number in _numbers(sequences, shapes[0].stages, dims.pp):
                tokens = -(-sequences // number) * length
                of = {kind: self._of_unit(dims, kind, tokens) for kind in self._kinds}
                slowest = 0.0
                for shape in shapes:
                    seconds = 0.0
                    for kind, count in shape.held:
                        passes = number * (of[kind][0] + of[kind][1])
                        seconds += count * (passes + self._accumulation(dims, kind, number))
                    seconds += sum(count * of[kind][0] for kind, count in shape.before)
                    seconds += sum(count * of[kind][1] for kind, count in shape.behind)
                    slowest = max(slowest, seconds)
                best = min(best, slowest)
        # The first of at least as many micro-batches as there are pipeline ranks waits for weights of all stages.
        first = -(-sequences // dims.pp) * length
        counts = Counter(self._sizes.kind_of)
        beside = sum(count * self._of_unit(dims, kind, first)[2] for kind, count in counts.items())
        beside += sum(self._of_unit(dims, kind, first)[2] for kind in ("embed", "head"))
        return best, 0.0, beside, 0.0

    def _data_traffic(self, dims: ParallelDims) -> tuple[float, float]:
        """Seconds of gathering all layers once, over all pipeline ranks, and of gathering them again and reducing their
        gradients."""
        dense, experts = self._layers(dims)
        ranks = dims.dp_shard * dims.cp
        number = self._base.types
        shards, expert_shards = dense / ranks, experts / dims.edp
        of_dense = self._per_byte(dims, "fsdp", ranks, "all_gather") * shards * (ranks - 1)
        of_experts = self._per_byte(dims, "edp", dims.edp, "all_gather") * expert_shards * (dims.edp - 1)
        gather = (of_dense + of_experts) * number.compute
        copies = dims.dp_replicate
        sent = 2 * (shards + expert_shards) * (copies - 1) / copies
        reduce = of_dense + of_experts + self._per_byte(dims, "dp_replicate", copies, "all_reduce") * sent
        return gather, gather + reduce * number.reduce

    def _copies(self, dims: ParallelDims) -> tuple[float, float]:
        """Seconds of copying the weights of all layers around their gathers, and their gradients around a reduction
        (``weight_copies``), over all pipeline ranks."""
        number, ranks = self._base.types, dims.dp_shard * dims.cp
        unpacked = packed = 0.0
        for elements, size in zip(self._layers(dims), (ranks, dims.edp), strict=True):
            unpacked += elements * (2 * number.compute if size > 1 else number.master + number.compute)
            packed += elements * (number.compute + number.reduce)
        return unpacked / self._bandwidth, packed / self._bandwidth

    def _least_share(self, pp: int) -> float:
        """The least share of the layers that a pipeline rank holds; 0 if layers differ."""
        if len(self._sizes.kinds) > 1:
            return 0.0
        held = (
            sum(count for kind, count in shape.held if kind == 0) for shapes in self._shapes[pp] for shape in shapes
        )
        return min(held) / len(self._sizes.kind_of)

    def _accumulation(self, dims: ParallelDims, kind: Kind, n_micro_batches: int) -> float:
        """Seconds in which a pipeline rank adds up the gradients of a layer over so many micro-batches."""
        if isinstance(kind, str) or not self._base.trains or self._base.reduces_each:
            return 0.0
        sizes, number = self._sizes.kinds[kind], self._base.types
        elements = sizes.sharded / dims.tp + sizes.replicated + sizes.experts / (dims.ep * dims.etp)
        moved = n_micro_batches * (number.compute + 2 * number.reduce) + number.compute + number.reduce
        return elements * moved / self._bandwidth

    def _per_byte(self, dims: ParallelDims, axis: Axis, size: int, collective: Collective) -> float:
        """Seconds per byte that a rank sends, without latency."""
        key = axis, size, dims.tp, dims.ep * dims.etp, dims.sharding_size, min(dims.world_size, self._per_node)
        if key not in self._links:
            many = 1e15  # beside which latency is nothing
            seconds = seconds_of(Transfer(axis, size, collective, "", 1, many, overlaps=True), dims, self._units.device)
            self._links[key] = seconds / many * (1 - 1e-9)
        return self._links[key]

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

    def _of_unit(self, dims: ParallelDims, kind: Kind, tokens: int) -> _PassSeconds:
        """Seconds of the forward and the backward pass of one micro-batch through a unit, without recomputation."""
        world = min(dims.world_size, self._per_node)
        key = kind, dims.tp, dims.cp, tokens, world
        found = self._blocks.get(key)
        if found is None:
            time = self._units.of(self._setting(replace(dims, ep=1, etp=1), tokens), kind)
            backward = sum(time.inputs.values()) + sum(time.weights.values())
            found = self._blocks[key] = sum(time.forward.values()), backward, time.forward_work, time.backward_work
        if dims.ep * dims.etp == 1:
            return found
        places = kind, dims.ep, dims.etp, -(-tokens // (dims.tp * dims.cp)), world
        exchange = self._exchanges.get(places)
        if exchange is None:
            exchange = self._exchanges[places] = self._units.exchange(self._setting(dims, tokens), kind)
        return found[0] + exchange[0], found[1] + exchange[1], found[2], found[3]

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

    def _layers(self, dims: ParallelDims) -> tuple[float, float]:
        """As ``_model``, of the layers alone."""
        dense, experts = self._model(dims)
        sizes = self._sizes
        return dense - (sizes.embed + sizes.last_sharded) / dims.tp - sizes.last_replicated, experts

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
