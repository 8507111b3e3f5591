"""How long the actions of a stage take, part by part.

FSDP2 gathers the weights of a unit while the unit before it computes, and reduces the gradients of a unit while the
next one computes. Ranks wait for what takes longer than that computation, for the first gather and for the last
reduction. Other collectives are on the path of the data: tensor, context and expert ranks wait for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from archon_core.models.stage import Stage
from archon_plan.devices import Device
from archon_plan.setting import Setting
from archon_plan.shards import Shards
from archon_plan.unit_times import COPIES, NO_TIME, Spent, UnitTime, UnitTimes, add_up
from archon_plan.units import StageUnits
from archon_plan.weight_copies import Copies

WEIGHTS = "waiting for weights"
GRADIENTS = "waiting for sums of gradients"


@dataclass(frozen=True)
class StageTimes:
    """Seconds of each kind of action of a stage, part by part.

    Attributes:
        forward: of F.
        backward: of B.
        backward_input: of I.
        backward_weight: of W.
        first_gather: what the first micro-batch waits in addition, for weights that are gathered once per step, with
            the copies around the gather.
        reduction: of a pipeline's sum of gradients over data ranks and the copies around it, after all actions.
    """

    forward: Spent = field(default_factory=dict)
    backward: Spent = field(default_factory=dict)
    backward_input: Spent = field(default_factory=dict)
    backward_weight: Spent = field(default_factory=dict)
    first_gather: float = 0.0
    reduction: float = 0.0


@dataclass(frozen=True)
class _Unit:
    """Equal units of a stage.

    Attributes:
        count: how many.
        time: of one.
        gather: seconds of gathering its weights.
        reduce: seconds of reducing its gradients.
        copies: seconds of copies around both.
        is_last: whether it is one whose weights stay whole by default.
    """

    count: int
    time: UnitTime
    gather: float
    reduce: float
    copies: Copies
    is_last: bool = False


def stage_times(setting: Setting, stage: Stage, groups: StageUnits, units: UnitTimes) -> StageTimes:
    """The times of one stage.

    Args:
        setting: what is planned.
        stage: its layers.
        groups: its FSDP2 groups.
        units: the times of its units.
    """
    line = _line(setting, stage, groups, units)
    forward = _all_of(line, "forward")
    gathers, _ = exposed([(u.count, u.time.forward_work, u.gather, 0.0) for u in line], units.device)
    unpacked = sum(unit.count * unit.copies.gather for unit in line)
    # A pipeline keeps weights from its first micro-batch on, unless it frees them for every pass.
    each = setting.reshards or (setting.trains and setting.dims.pp == 1)
    if each:
        forward = add_up(forward, {WEIGHTS: gathers, COPIES: unpacked})
    first_gather = 0.0 if each else gathers + unpacked
    if not setting.trains:
        return StageTimes(forward, first_gather=first_gather)
    again, inputs, weights, split = (_all_of(line, name) for name in ("again", "inputs", "weights", "split"))
    late = _late(setting, line, units.device)
    staged = setting.dims.pp > 1
    reduction = sum(unit.count * (unit.reduce + unit.copies.reduce) for unit in line) if staged else 0.0
    if setting.reduces_each and reduction:
        # The runner reduces after the action, and waits for it.
        late.gradients[GRADIENTS], reduction = reduction, 0.0
    return StageTimes(
        forward,
        add_up(again, inputs, weights, late.weights, late.gradients),
        add_up(again, inputs, late.weights),
        add_up(again, weights, split, late.gradients),
        first_gather,
        reduction,
    )


def _all_of(line: Sequence[_Unit], name: str) -> Spent:
    """The sum of one attribute of ``UnitTime`` over all units."""
    total: Spent = {}
    for unit in line:
        for part, seconds in getattr(unit.time, name).items():
            total[part] = total.get(part, 0.0) + unit.count * seconds
    return total


def _line(setting: Setting, stage: Stage, groups: StageUnits, units: UnitTimes) -> list[_Unit]:
    """The units of a stage in the order of the forward pass; those of no weights and no work are left out."""
    layers = setting.layers_of(stage)
    named: list[tuple[int, UnitTime, tuple[Shards, ...], bool]] = []
    if groups.root.tensors:
        named.append((1, NO_TIME, (groups.root,), True))
    if stage.has_embed:
        named.append((1, units.of(setting, "embed"), (groups.early,), False))
    for kind, block in zip(sorted({kind for kind, _ in layers}), groups.blocks, strict=True):
        time = units.of(setting, kind, layers[kind, True] / block.count)
        named.append((block.count, time, (block.dense, block.experts), False))
    if stage.has_head:
        named.append((1, units.of(setting, "head"), (groups.last,), True))

    def moved() -> list[tuple[float, float, Copies]]:
        """Of one unit each: gathering, reducing and copying."""
        return [
            (units.gather(setting, *own), units.reduce(setting, *own), units.copies(setting, *own))
            for _, _, own, _ in named
        ]

    # It depends neither on the tokens nor on checkpointing.
    key = "weights", setting.dims, groups, setting.tokens.n_micro_batches > 1, setting.reduces_each, setting.trains
    traffic = units.remembered(key, moved)
    return [_Unit(count, time, *own, is_last) for (count, time, _, is_last), own in zip(named, traffic, strict=True)]


class _Late(NamedTuple):
    """What a backward pass waits for, and copies, before it computes and behind it."""

    weights: Spent
    gradients: Spent


def _late(setting: Setting, line: Sequence[_Unit], device: Device) -> _Late:
    """Waiting for weights and for sums of gradients, and the copies of both."""
    staged = setting.dims.pp > 1
    back, unpacked, packed = [], 0.0, 0.0
    for unit in reversed(line):
        frees = setting.reshards_last if unit.is_last else setting.reshards
        gather, reduce = unit.gather if frees else 0.0, 0.0 if staged else unit.reduce
        back.append((unit.count, unit.time.backward_work, gather, reduce))
        unpacked += unit.count * unit.copies.gather if frees else 0.0
        packed += unit.count * (unit.copies.accumulate if staged else unit.copies.reduce)
    gathers, reduces = exposed(back, device)
    return _Late({WEIGHTS: gathers, COPIES: unpacked}, {GRADIENTS: reduces, COPIES: packed})


def exposed(line: Sequence[tuple[int, float, float, float]], device: Device) -> tuple[float, float]:
    """Seconds that a pass waits for weights and for sums of gradients.

    On a CPU nothing overlaps: copying the buffers of a collective takes the cores from the computation.

    Args:
        line: equal units in the order of the pass: their number, and of one the seconds of computing, of gathering its
            weights, and of reducing its gradients.
        device: of every rank.
    """
    if device.kind == "cpu":
        return sum(n * gather for n, _, gather, _ in line), sum(n * reduce for n, _, _, reduce in line)
    if not line:
        return 0.0, 0.0
    gathers, reduces = line[0][2], line[-1][3]
    before = 0.0
    for place, (count, busy, gather, reduce) in enumerate(line):
        after = line[place + 1][2] if place + 1 < len(line) else 0.0
        # Of equal units, the first has the unit before in front of it, the last the unit behind it.
        if count == 1:
            spans = ((1, after, before),)
        else:
            spans = ((1, gather, before), (count - 2, gather, reduce), (1, after, reduce))
        for number, coming, leaving in spans:
            over = number * max(0.0, coming + leaving - busy)
            if over:
                gathers += over * coming / (coming + leaving)
                reduces += over * leaving / (coming + leaving)
        before = reduce
    return gathers, reduces
