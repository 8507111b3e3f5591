"""Lower bounds of the time of a layout, with a mode of checkpointing, whatever its schedule and micro-batches.

The search looks at layouts in the order of these bounds, and stops at the first bound above the best times found. So
bounds must never exceed the time of a step (``timing``) with any of these options, and should be close to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from archon_core.layout.dims import ParallelDims
from archon_plan.collectives import seconds_of
from archon_plan.mean_elements import MeanElements
from archon_plan.micro_batches import MicroBatches
from archon_plan.rank_shapes import RankShape
from archon_plan.results import Axis, Collective, Transfer
from archon_plan.setting import Checkpointing, Setting
from archon_plan.sizes import sizes_of
from archon_plan.unit_times import ENDS, Kind, UnitTimes

_PassSeconds = tuple[float, float, float, float]
"""Seconds of forward and backward passes, and of computation in each."""

_UnitSeconds = dict[Kind, _PassSeconds]


class WeightSeconds(NamedTuple):
    """What data ranks spend on the weights and gradients of all layers, over all pipeline ranks.

    Attributes:
        gather: gathering weights once.
        reduce: gathering them again, and reducing gradients.
        unpacked: copying weights around a gather.
        packed: copying gradients around a reduction.
    """

    gather: float
    reduce: float
    unpacked: float
    packed: float


def _sum(parts: Iterable[tuple[_PassSeconds, int]]) -> _PassSeconds:
    found = [0.0] * 4
    for seconds, count in parts:
        for place, each in enumerate(seconds):
            found[place] += count * each
    return found[0], found[1], found[2], found[3]


class Bounds:
    """Bounds for the layouts of one model and one batch.

    Args:
        base: what all settings share, without a pipeline.
        units: times of units.
        micro_batches: of every layout.
        shapes: size of the pipeline -> the ranks of each kind of split.
        elements: of the model.
    """

    def __init__(
        self,
        base: Setting,
        units: UnitTimes,
        micro_batches: MicroBatches,
        shapes: dict[int, tuple[tuple[RankShape, ...], ...]],
        elements: MeanElements,
    ) -> None:
        self._base, self._units, self._micro_batches, self._shapes = base, units, micro_batches, shapes
        self._elements = elements
        self._per_node = units.device.devices_per_node
        self._bandwidth = units.device.memory_bandwidth * units.device.efficiency.memory
        self._sizes = sizes_of(base.anatomy)
        self._units_of_model: tuple[tuple[Kind, int], ...] = (
            *sorted(Counter(self._sizes.kind_of).items()),
            *((end, 1) for end in ENDS),
        )
        self._least_shares: dict[int, float] = {}
        self._of_kinds: dict[tuple[object, ...], _UnitSeconds] = {}
        self._blocks: dict[tuple[object, ...], _PassSeconds] = {}
        self._exchanges: dict[tuple[object, ...], tuple[float, float]] = {}
        self._quick: dict[tuple[int, ...], float] = {}
        self._passes: dict[tuple[object, ...], dict[tuple[int, int], float]] = {}
        self._beside: dict[tuple[int, ...], float] = {}
        self._summed: dict[tuple[int, int], dict[Kind, float]] = {}
        self._weights: dict[tuple[int, ...], WeightSeconds] = {}
        self._around: tuple[ParallelDims, float] | None = None

    def time(self, dims: ParallelDims, mode: Checkpointing = "none") -> float:
        """Seconds that a step takes at least with any schedule and any number of micro-batches."""
        if dims.pp == 1:
            # More micro-batches add gathers, and their products are smaller.
            return self._without_pipeline(dims, 1, mode)
        return min(self._of_pipelines(dims, mode).values(), default=float("inf")) + self._around_pipeline(dims)

    def quick_time(self, dims: ParallelDims) -> float:
        """As ``time`` without recomputation, but further from it where there is a pipeline: as if all its ranks did
        equally much all the time, with one micro-batch."""
        if dims.pp == 1:
            return self._without_pipeline(dims, 1, "none")
        key = dims.tp, dims.cp, dims.ep, dims.etp, self._groups_of(dims), min(dims.world_size, self._per_node)
        if key not in self._quick:
            of = self._of_units(dims, self._groups_of(dims), "none", self._base.compiles)
            self._quick[key] = sum(count * (of[kind][0] + of[kind][1]) for kind, count in self._units_of_model)
        return self._quick[key] / dims.pp + self._around_pipeline(dims)

    def time_of(self, dims: ParallelDims, place: int, number: int, mode: Checkpointing) -> float:
        """Seconds that a step takes at least with a schedule and ``number`` micro-batches.

        Args:
            dims: the layout.
            place: of the schedule's ranks among ``shapes``.
            number: of micro-batches, one that the search tries.
            mode: of checkpointing.
        """
        if dims.pp == 1:
            return self._without_pipeline(dims, number, mode)
        return self._of_pipelines(dims, mode)[place, number] + self._around_pipeline(dims)

    def _without_pipeline(self, dims: ParallelDims, number: int, mode: Checkpointing) -> float:
        of = self._of_units(dims, -(-self._groups_of(dims) // number), mode, self._base.compiles)
        forward, backward, forward_work, backward_work = _sum((of[kind], count) for kind, count in self._units_of_model)
        weights = self._weight_seconds(dims)
        # What exceeds the computation beside it cannot be hidden.
        forward += max(0.0, weights.gather - forward_work) + weights.unpacked
        if self._base.trains:
            backward += max(0.0, weights.reduce - backward_work) + weights.unpacked + weights.packed
        return number * (forward + backward) + self._update(dims)

    def _of_pipelines(self, dims: ParallelDims, mode: Checkpointing) -> dict[tuple[int, int], float]:
        """(place of a schedule's ranks, number of micro-batches) -> seconds of the passes of the slowest rank."""
        groups = self._groups_of(dims)
        # Replicas and shards differ only in what data ranks exchange and update.
        key = dims.pp, groups, dims.tp, dims.cp, dims.ep, dims.etp, mode, min(dims.world_size, self._per_node)
        found = self._passes.get(key)
        if found is None:
            found = self._passes[key] = {}
            units: dict[tuple[int, bool], _UnitSeconds] = {}
            for place, shapes in enumerate(self._shapes[dims.pp]):
                splits = shapes[0].splits
                if splits and mode not in ("none", "full"):
                    continue
                for number in self._numbers(groups, shapes[0].stages, dims.pp):
                    if (number, splits) not in units:
                        # Blocks whose backward pass is split are not compiled.
                        compiles = self._base.compiles and not splits
                        units[number, splits] = self._of_units(dims, -(-groups // number), mode, compiles)
                    found[place, number] = self._of_pipeline(dims, shapes, number, units[number, splits])
        return found

    def _groups_of(self, dims: ParallelDims) -> int:
        """Groups of sequences of a data rank."""
        return self._micro_batches.groups_of(dims)

    def _numbers(self, groups: int, n_stages: int, n_ranks: int) -> set[int]:
        """Numbers of micro-batches that the search tries, with any schedule of so many stages."""
        numbers = self._micro_batches.numbers
        return {*numbers(groups, n_stages, 1), *numbers(groups, n_stages, n_ranks)}

    def _of_pipeline(self, dims: ParallelDims, shapes: Sequence[RankShape], number: int, of: _UnitSeconds) -> float:
        """Seconds of the passes of the slowest rank. ``of``: times of units with so many micro-batches."""
        sums = self._accumulation(dims)
        types = self._base.types
        moved = number * (types.compute + 2 * types.reduce) + types.compute + types.reduce
        slowest = 0.0
        for shape in shapes:
            seconds = 0.0
            for kind, count in shape.held:
                seconds += count * (number * (of[kind][0] + of[kind][1]) + moved * sums.get(kind, 0.0))
            for kind, count in shape.before:
                seconds += count * of[kind][0]
            for kind, count in shape.behind:
                seconds += count * of[kind][1]
            slowest = max(slowest, seconds)
        return slowest

    def _around_pipeline(self, dims: ParallelDims) -> float:
        """Seconds of a step beside the passes: a pipeline gathers weights once, and reduces gradients at the end."""
        if self._around is None or self._around[0] is not dims:
            # The search asks for all modes and micro-batches of a layout in turn.
            self._around = dims, self._seconds_around(dims)
        return self._around[1]

    def _seconds_around(self, dims: ParallelDims) -> float:
        weights = self._weight_seconds(dims)
        # The first of at least as many micro-batches as there are pipeline ranks waits for weights of all stages.
        beside = self._forward_work(dims, -(-self._groups_of(dims) // dims.pp))
        seconds = max(0.0, weights.gather - beside) + weights.unpacked
        if self._base.trains:
            # Behind the passes of the slowest rank, which has at least as many layers as the one with the fewest.
            seconds += (weights.reduce - weights.gather) * self._least_share(dims.pp)
        return seconds + self._update(dims)

    def _forward_work(self, dims: ParallelDims, groups: int) -> float:
        """Seconds of computation in the forward pass of a micro-batch through the whole model."""
        # How experts are divided does not matter: every rank computes as much.
        key = dims.tp, dims.cp, groups, min(dims.world_size, self._per_node)
        found = self._beside.get(key)
        if found is None:
            of = self._of_units(dims, groups, "none", self._base.compiles)
            found = self._beside[key] = sum(count * of[kind][2] for kind, count in self._units_of_model)
        return found

    def _weight_seconds(self, dims: ParallelDims) -> WeightSeconds:
        """What data ranks spend on weights and gradients; layouts with equal groups share it."""
        ranks, experts = dims.dp_shard * dims.cp, dims.ep * dims.etp
        key = ranks, dims.tp, experts, dims.dp_replicate, min(dims.world_size, self._per_node)
        found = self._weights.get(key)
        if found is None:
            found = self._weights[key] = WeightSeconds(*self._data_traffic(dims), *self._copies(dims))
        return found

    def _data_traffic(self, dims: ParallelDims) -> tuple[float, float]:
        """Seconds of gathering all layers once, over all pipeline ranks, and of gathering them again and reducing their
        gradients."""
        dense, experts = self._elements.of_layers(dims)
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
        for elements, size in zip(self._elements.of_layers(dims), (ranks, dims.edp), strict=True):
            unpacked += elements * (2 * number.compute if size > 1 else number.master + number.compute)
            packed += elements * (number.compute + number.reduce)
        return unpacked / self._bandwidth, packed / self._bandwidth

    def _least_share(self, pp: int) -> float:
        """The least share of the layers that a pipeline rank holds; 0 if layers differ."""
        if pp not in self._least_shares:
            shapes = [shape for shapes in self._shapes[pp] for shape in shapes]
            least = min(sum(count for kind, count in shape.held if kind == 0) for shape in shapes)
            self._least_shares[pp] = least / len(self._sizes.kind_of) if len(self._sizes.kinds) == 1 else 0.0
        return self._least_shares[pp]

    def _accumulation(self, dims: ParallelDims) -> dict[Kind, float]:
        """Seconds per byte of a number in which a pipeline rank adds up the gradients of a layer; empty if it does not.

        It reads and writes them with each micro-batch, in the type of reductions.
        """
        if not self._base.trains or self._base.reduces_each:
            return {}
        key = dims.tp, dims.ep * dims.etp
        if key not in self._summed:
            self._summed[key] = {
                kind: (sizes.sharded / dims.tp + sizes.replicated + sizes.experts / (dims.ep * dims.etp))
                / self._bandwidth
                for kind, sizes in enumerate(self._sizes.kinds)
            }
        return self._summed[key]

    def _per_byte(self, dims: ParallelDims, axis: Axis, size: int, collective: Collective) -> float:
        """Seconds per byte that a rank sends, without latency."""
        many = 1e15  # beside which latency is nothing
        seconds = seconds_of(Transfer(axis, size, collective, "", 1, many, overlaps=True), dims, self._units.device)
        return seconds / many * (1 - 1e-9)

    def _of_units(self, dims: ParallelDims, groups: int, mode: Checkpointing, compiles: bool) -> _UnitSeconds:
        """Seconds of one micro-batch of so many groups through a unit of each kind."""
        tokens = self._micro_batches.padded_tokens(dims, groups)
        key = dims.tp, dims.cp, dims.ep, dims.etp, tokens, mode, compiles, min(dims.world_size, self._per_node)
        found = self._of_kinds.get(key)
        if found is None:
            found = self._of_kinds[key] = {
                kind: self._of_unit(dims, kind, tokens, mode, compiles) for kind, _ in self._units_of_model
            }
        return found

    def _of_unit(
        self, dims: ParallelDims, kind: Kind, tokens: int, mode: Checkpointing, compiles: bool
    ) -> _PassSeconds:
        """Seconds of the forward and the backward pass of one micro-batch through a unit."""
        world = min(dims.world_size, self._per_node)
        key = kind, dims.tp, dims.cp, tokens, world, mode, compiles
        found = self._blocks.get(key)
        if found is None:
            setting = self._setting(replace(dims, ep=1, etp=1), tokens, mode, compiles)
            whole = 1.0 if mode == "full" and kind not in ENDS else 0.0
            time = self._units.of(setting, kind, whole)
            backward = sum(sum(part.values()) for part in (time.again, time.inputs, time.weights))
            found = self._blocks[key] = sum(time.forward.values()), backward, time.forward_work, time.backward_work
        if dims.ep * dims.etp == 1:
            return found
        places = kind, dims.ep, dims.etp, tokens // (dims.tp * dims.cp), world
        exchange = self._exchanges.get(places)
        if exchange is None:
            exchange = self._exchanges[places] = self._units.exchange(
                self._setting(dims, tokens, "none", compiles), kind
            )
        return found[0] + exchange[0], found[1] + exchange[1], found[2], found[3]

    def _setting(self, dims: ParallelDims, tokens: int, mode: Checkpointing, compiles: bool) -> Setting:
        own = replace(self._base.tokens, per_micro_batch=tokens, n_micro_batches=1)
        return replace(self._base, dims=dims, tokens=own, compiles=compiles, checkpointing=mode, every=None)

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
        return self._elements.sharded(dims) * moved / bandwidth
