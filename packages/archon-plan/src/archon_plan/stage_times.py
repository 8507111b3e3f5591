"""How long the actions of a stage take, part by part.

FSDP2 gathers the weights of a unit while the unit before it computes, and reduces the gradients of a unit while the
next one computes. Ranks wait for what takes longer than that computation, for the first gather and for the last
reduction. Other collectives are on the path of the data: tensor, context and expert ranks wait for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from archon_core.models.stage import Stage
from archon_plan.devices import Device
from archon_plan.setting import Setting
from archon_plan.unit_times import NO_TIME, Spent, UnitTime, UnitTimes, add_up, times
from archon_plan.units import StageUnits

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
        first_gather: what the first micro-batch waits in addition, for weights that are gathered once per step.
        reduction: of a pipeline's sum of gradients over data ranks, after all actions.
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
        is_last: whether it is one whose weights stay whole by default.
    """

    count: int
    time: UnitTime
    gather: float
    reduce: float
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
    forward = add_up(*(times(unit.time.forward, unit.count) for unit in line))
    gathers, _ = exposed([(u.count, u.time.forward_work, u.gather, 0.0) for u in line], units.device)
    # A pipeline keeps weights from its first micro-batch on, unless it frees them for every pass.
    each = setting.reshards or (setting.trains and setting.dims.pp == 1)
    if each:
        forward = add_up(forward, {WEIGHTS: gathers})
    first_gather = 0.0 if each else gathers
    if not setting.trains:
        return StageTimes(forward, first_gather=first_gather)
    again, inputs, weights, split = (
        add_up(*(times(getattr(unit.time, name), unit.count) for unit in line))
        for name in ("again", "inputs", "weights", "split")
    )
    late = _late(setting, line, units.device)
    reduction = sum(unit.count * unit.reduce for unit in line) if setting.dims.pp > 1 else 0.0
    if setting.reduces_each and reduction:
        # The runner reduces after the action, and waits for it.
        late[GRADIENTS], reduction = reduction, 0.0
    return StageTimes(
        forward,
        add_up(again, inputs, weights, late),
        add_up(again, inputs, {WEIGHTS: late[WEIGHTS]}),
        add_up(again, weights, split, {GRADIENTS: late[GRADIENTS]}),
        first_gather,
        reduction,
    )


def _line(setting: Setting, stage: Stage, groups: StageUnits, units: UnitTimes) -> list[_Unit]:
    """The units of a stage in the order of the forward pass; those of no weights and no work are left out."""
    line = []
    if groups.root.tensors:
        root = groups.root
        line.append(_Unit(1, NO_TIME, units.gather(setting, root), units.reduce(setting, root), is_last=True))
    if stage.has_embed:
        early = groups.early
        time = units.of(setting, "embed")
        line.append(_Unit(1, time, units.gather(setting, early), units.reduce(setting, early)))
    layers = setting.layers_of(stage)
    for kind, block in zip(sorted({kind for kind, _ in layers}), groups.blocks, strict=True):
        both, count = (block.dense, block.experts), block.count
        time = units.of(setting, kind, layers[kind, True] / count)
        line.append(_Unit(count, time, units.gather(setting, *both), units.reduce(setting, *both)))
    if stage.has_head:
        last = groups.last
        time = units.of(setting, "head")
        line.append(_Unit(1, time, units.gather(setting, last), units.reduce(setting, last), is_last=True))
    return line


def _late(setting: Setting, line: Sequence[_Unit], device: Device) -> Spent:
    """What a backward pass waits for weights and sums of gradients."""
    staged = setting.dims.pp > 1
    back = []
    for unit in reversed(line):
        frees = setting.reshards_last if unit.is_last else setting.reshards
        gather, reduce = unit.gather if frees else 0.0, 0.0 if staged else unit.reduce
        back.append((unit.count, unit.time.backward_work, gather, reduce))
    gathers, reduces = exposed(back, device)
    return {WEIGHTS: gathers, GRADIENTS: reduces}


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
