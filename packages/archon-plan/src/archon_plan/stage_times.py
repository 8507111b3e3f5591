"""How long the actions of a stage take, part by part.

FSDP2 gathers the weights of a unit while the unit before it computes, and reduces the gradients of a unit while the
next one computes. Ranks wait for what takes longer than that computation, for the first gather and for the last
reduction. Other collectives are on the path of the data: tensor, context and expert ranks wait for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from archon_plan.collectives import seconds_of
from archon_plan.devices import Device
from archon_plan.flops import NO_PASSES, Passes, StageWork, Work, is_recomputed, stage_work
from archon_plan.results import Transfer
from archon_plan.setting import Setting
from archon_plan.shards import Shards
from archon_plan.units import StageUnits, units_of

DENSE = "dense products"
GROUPED = "products of experts"
ATTENTION = "attention"
HEAD = "head"
ROUTERS = "routers"
POINTWISE = "norms, activations and sums"
RECOMPUTE = "recompute"
LAUNCHES = "launching operations"
TENSOR = "waiting for tensor ranks"
CONTEXT = "waiting for context ranks"
EXPERTS = "waiting for expert ranks"
WEIGHTS = "waiting for weights"
GRADIENTS = "waiting for sums of gradients"

PER_STEP = ("header", "replicated gradients", "gradients of tied weights", "gradient norm", "reports of experts")
"""Purposes of transfers that happen once per step."""

_WAITS = {"tp": TENSOR, "cp": CONTEXT, "ep": EXPERTS, "etp": EXPERTS, "stage": EXPERTS}
_AGAIN = ", again"

Spent = dict[str, float]
"""Part -> seconds."""


@dataclass(frozen=True)
class StageTimes:
    """Seconds of each kind of action of a stage, part by part.

    Attributes:
        forward: of F.
        backward: of B.
        backward_input: of I.
        backward_weight: of W.
        first_gather: what the first micro-batch waits in addition, for weights that are gathered once per step.
    """

    forward: Spent = field(default_factory=dict)
    backward: Spent = field(default_factory=dict)
    backward_input: Spent = field(default_factory=dict)
    backward_weight: Spent = field(default_factory=dict)
    first_gather: float = 0.0


def add_up(parts: Iterable[Spent]) -> Spent:
    """The sum of several."""
    total: Spent = {}
    for part in parts:
        for name, seconds in part.items():
            total[name] = total.get(name, 0.0) + seconds
    return total


def spend(work: Work, setting: Setting, device: Device) -> Spent:
    """Seconds that a device takes for ``work``."""
    share, peak = device.efficiency, device.peak(setting.types.compute)
    exact = device.peak(max(4, setting.types.compute))
    spent = {
        DENSE: work.dense / (peak * share.dense),
        GROUPED: work.grouped / (peak * share.grouped),
        ATTENTION: work.attention / (peak * share.attention),
        HEAD: work.head / (peak * share.dense),
        ROUTERS: work.router / (exact * share.dense),
        POINTWISE: work.memory / (device.memory_bandwidth * share.memory),
    }
    host = work.operations * device.launch
    spent[LAUNCHES] = host if device.kind == "cpu" else max(0.0, host - sum(spent.values()))
    return spent


def stage_times(
    setting: Setting, device: Device, pipeline_rank: int, transfers: Sequence[Transfer]
) -> tuple[StageTimes, ...]:
    """The times of the stages on a pipeline rank.

    Args:
        setting: what is planned.
        device: of every rank.
        pipeline_rank: which.
        transfers: what a rank of it sends in one step.
    """
    stages, units = setting.held_by(pipeline_rank), units_of(setting, pipeline_rank)
    weights = _WeightSeconds.of(setting, device, units, transfers)
    waits = _Waits.of(setting, device, transfers)
    layers = sum(len(stage.layers) for stage in stages)
    found = []
    for stage, groups in zip(stages, units, strict=True):
        share = len(stage.layers) / layers if layers else 1 / len(stages)
        repeated = sum(is_recomputed(setting, layer) for layer in stage.layers) / max(len(stage.layers), 1)
        stretch = _Stretch(setting, device, stage_work(setting, stage), groups, weights)
        found.append(stretch.times(waits.forward(share, repeated), waits.backward(share, repeated)))
    return tuple(found)


@dataclass(frozen=True)
class _Waits:
    """Seconds of collectives that ranks wait for, by part, of all stages of a pipeline rank and one micro-batch.

    Attributes:
        both: of forward and backward passes, and of what backward repeats.
        again: of what backward repeats, where it is known apart.
        trains: whether there are backward passes.
    """

    both: Spent
    again: Spent
    trains: bool

    @classmethod
    def of(cls, setting: Setting, device: Device, transfers: Sequence[Transfer]) -> _Waits:
        both: Spent = {}
        again: Spent = {}
        for transfer in transfers:
            part = _WAITS.get(transfer.axis)
            if part is None or transfer.overlaps or transfer.purpose in (*PER_STEP, "gradients"):
                continue
            target = again if transfer.purpose.endswith(_AGAIN) else both
            seconds = seconds_of(transfer, setting.dims, device) / setting.tokens.n_micro_batches
            target[part] = target.get(part, 0.0) + seconds
        return cls(both, again, setting.trains)

    def forward(self, share: float, repeated: float) -> Spent:
        """Of a forward pass of the stage with that share of the layers."""
        if not self.trains:
            return {part: seconds * share for part, seconds in self.both.items()}
        return {part: seconds * share / self._passes(part, repeated) for part, seconds in self.both.items()}

    def backward(self, share: float, repeated: float) -> Spent:
        """Of a backward pass, with what it repeats."""
        if not self.trains:
            return {}
        spent = {part: seconds * share * (1 - 1 / self._passes(part, repeated)) for part, seconds in self.both.items()}
        return add_up([spent, {part: seconds * share for part, seconds in self.again.items()}])

    def _passes(self, part: str, repeated: float) -> float:
        """Passes whose collectives are in ``both``: forward, backward, and the share that backward repeats."""
        return 2.0 if part == TENSOR else 2.0 + repeated


@dataclass(frozen=True)
class _WeightSeconds:
    """Seconds per stored element of gathering weights and of reducing gradients, once.

    Attributes:
        gather: of dense weights.
        gather_experts: of experts.
        reduce: of dense weights.
        reduce_experts: of experts.
    """

    gather: float
    gather_experts: float
    reduce: float
    reduce_experts: float

    @classmethod
    def of(
        cls, setting: Setting, device: Device, units: Sequence[StageUnits], transfers: Sequence[Transfer]
    ) -> _WeightSeconds:
        seconds = dict.fromkeys(("gather", "gather_experts", "reduce", "reduce_experts"), 0.0)
        dense = [group for stage in units for group in _dense(stage)]
        stored = sum(group.stored for group in dense)
        experts = sum(block.experts.stored * block.count for stage in units for block in stage.blocks)
        for transfer in transfers:
            if transfer.purpose not in ("weights", "gradients"):
                continue
            kind = "gather" if transfer.purpose == "weights" else "reduce"
            spent = seconds_of(transfer, setting.dims, device)
            if transfer.axis == "dp_replicate":
                seconds["reduce"] += spent * stored / max(stored + experts, 1)
                seconds["reduce_experts"] += spent * experts / max(stored + experts, 1)
            else:
                seconds[kind + ("_experts" if transfer.axis == "edp" else "")] += spent
        early, last, reductions = passes_of_weights(setting)
        ends = sum((stage.last + stage.root).stored for stage in units)
        gathered = (stored - ends) * early + ends * last
        moved = setting.types.master / device.host_bandwidth if setting.offloads else 0.0
        return cls(
            seconds["gather"] / max(gathered, 1) + moved,
            seconds["gather_experts"] / max(experts * early, 1) + moved,
            seconds["reduce"] / max(stored * reductions, 1) + moved,
            seconds["reduce_experts"] / max(experts * reductions, 1) + moved,
        )

    def gather_of(self, dense: Shards, experts: Shards | None = None) -> float:
        """Of one unit."""
        return self.gather * dense.stored + (self.gather_experts * experts.stored if experts else 0.0)

    def reduce_of(self, dense: Shards, experts: Shards | None = None) -> float:
        """Of one unit."""
        return self.reduce * dense.stored + (self.reduce_experts * experts.stored if experts else 0.0)


def passes_of_weights(setting: Setting) -> tuple[int, int, int]:
    """How often a step gathers the weights of units before the last ones, those of the last ones, and reduces gradients
    (``weight_traffic``)."""
    n = setting.tokens.n_micro_batches
    if not setting.trains:
        return n if setting.reshards else 1, n if setting.reshards_last else 1, 0
    if setting.dims.pp == 1:
        return n * (1 + setting.reshards), n * (1 + setting.reshards_last), n
    early, last = (2 * n if frees else 1 for frees in (setting.reshards, setting.reshards_last))
    return early, last, n if setting.reduces_each else 1


def _dense(stage: StageUnits) -> list[Shards]:
    return [stage.root, stage.early, *(block.dense.times(block.count) for block in stage.blocks), stage.last]


@dataclass(frozen=True)
class _Unit:
    """A unit on its way through a pass, or equal ones.

    Attributes:
        count: how many.
        busy: seconds of its computation.
        gather: seconds of gathering its weights; 0 if they are whole already.
        reduce: seconds of reducing its gradients; 0 if they are reduced later.
    """

    count: int
    busy: float
    gather: float
    reduce: float = 0.0


def exposed(units: Sequence[_Unit], device: Device) -> tuple[float, float]:
    """Seconds that a pass waits for weights and for sums of gradients.

    On a CPU nothing overlaps: copying the buffers of a collective takes the cores from the computation.
    """
    if device.kind == "cpu":
        return sum(u.count * u.gather for u in units), sum(u.count * u.reduce for u in units)
    # Of many equal units, all but the first and the last have equal neighbours.
    line = [(u, times) for u in units if u.count for times in ((1,) if u.count == 1 else (1, u.count - 2, 1))]
    line = [(unit, times) for unit, times in line if times > 0]
    if not line:
        return 0.0, 0.0
    gathers, reduces = line[0][0].gather, line[-1][0].reduce
    for place, (unit, times) in enumerate(line):
        after = unit.gather if times > 1 else (line[place + 1][0].gather if place + 1 < len(line) else 0.0)
        before = unit.reduce if times > 1 else (line[place - 1][0].reduce if place else 0.0)
        late = times * max(0.0, after + before - unit.busy)
        if late:
            gathers += late * after / (after + before)
            reduces += late * before / (after + before)
    return gathers, reduces


class _Stretch:
    """The units of a stage with their times."""

    def __init__(
        self, setting: Setting, device: Device, work: StageWork, groups: StageUnits, weights: _WeightSeconds
    ) -> None:
        self._setting, self._device = setting, device
        early, blocks, last = work.early, work.blocks, work.last
        self._rows: list[tuple[int, Passes, float, float, bool]] = [
            (1, NO_PASSES, weights.gather_of(groups.root), weights.reduce_of(groups.root), True),
            (1, early, weights.gather_of(groups.early), weights.reduce_of(groups.early), False),
        ]
        for (count, passes), block in zip(blocks, groups.blocks, strict=True):
            both = block.dense, block.experts
            self._rows.append((count, passes, weights.gather_of(*both), weights.reduce_of(*both), False))
        self._rows.append((1, last, weights.gather_of(groups.last), weights.reduce_of(groups.last), True))

    def times(self, wait_forward: Spent, wait_backward: Spent) -> StageTimes:
        """The times of the stage's actions, given what they wait for other ranks."""
        forward, inputs, weights, recompute, split = ([] for _ in range(5))
        for count, passes, *_ in self._rows:
            forward.append(self._spent(passes.forward * count))
            inputs.append(self._spent(passes.backward_input * count))
            weights.append(self._spent(passes.backward_weight * count))
            split.append(self._spent(passes.split_weight * count))
            recompute.append(sum(self._spent(passes.recompute * count).values()))
        setting = self._setting
        pass_forward = [
            _Unit(count, sum(spent.values()) / count, gather)
            for (count, _, gather, _, _), spent in zip(self._rows, forward, strict=True)
        ]
        first_gather, _ = exposed(pass_forward, self._device)
        each = setting.reshards or (setting.trains and setting.dims.pp == 1)
        spent_forward = add_up([*forward, wait_forward, {WEIGHTS: first_gather if each else 0.0}])
        if not setting.trains:
            return StageTimes(spent_forward, first_gather=0.0 if each else first_gather)
        again = {RECOMPUTE: sum(recompute)}
        late = self._late(inputs, weights, recompute)
        # Only a stage between others splits its backward pass; see archon_pipeline.stage_passes.
        return StageTimes(
            spent_forward,
            add_up([*inputs, *weights, again, wait_backward, late]),
            add_up([*inputs, again, wait_backward, {WEIGHTS: late[WEIGHTS]}]),
            add_up([*weights, *split, again, {GRADIENTS: late[GRADIENTS]}]),
            0.0 if each else first_gather,
        )

    def _late(self, inputs: list[Spent], weights: list[Spent], recompute: list[float]) -> Spent:
        """What a backward pass waits for weights and sums of gradients."""
        setting = self._setting
        staged = setting.dims.pp > 1
        units = []
        for (count, _, gather, reduce, is_last), *busy, again in zip(
            self._rows, inputs, weights, recompute, strict=True
        ):
            seconds = (sum(sum(spent.values()) for spent in busy) + again) / count
            frees = setting.reshards_last if is_last else setting.reshards
            units.append(_Unit(count, seconds, gather if frees else 0.0, 0.0 if staged else reduce))
        gathers, reduces = exposed(units[::-1], self._device)
        if staged and setting.reduces_each:
            # The runner reduces after the action and waits for it.
            reduces = sum(count * reduce for count, _, _, reduce, _ in self._rows)
        return {WEIGHTS: gathers, GRADIENTS: reduces}

    def _spent(self, work: Work) -> Spent:
        return spend(work, self._setting, self._device)
