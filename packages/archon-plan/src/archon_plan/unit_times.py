"""How long one unit of a stage takes: a block, the embedding, or norm and head.

Units are alike in many stages and many layouts, so their times are kept. Settings that share a ``UnitTimes`` may differ
in the sizes of axes, tokens, stages, schedule, checkpointing, compilation and resharding.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from archon_plan.collectives import seconds_of
from archon_plan.devices import Device
from archon_plan.expert_traffic import add_experts
from archon_plan.flops import Passes as UnitPasses
from archon_plan.flops import Work, embedding_passes, head_passes, layer_passes
from archon_plan.ledger import Ledger
from archon_plan.results import Axis, Collective, Transfer
from archon_plan.setting import Setting
from archon_plan.shards import NOTHING, Shards
from archon_plan.sizes import sizes_of
from archon_plan.token_traffic import Passes, add_embedding, add_head, add_layer
from archon_plan.weight_copies import Copies, copies

DENSE = "dense products"
GROUPED = "products of experts"
ATTENTION = "attention"
HEAD = "head"
ROUTERS = "routers"
POINTWISE = "norms, activations and sums"
RECOMPUTE = "recompute"
COPIES = "copying weights and gradients"
LAUNCHES = "launching operations"
TENSOR = "waiting for tensor ranks"
CONTEXT = "waiting for context ranks"
EXPERTS = "waiting for expert ranks"

_WAITS = {
    "tp": TENSOR,
    "cp": CONTEXT,
    "cp_heads": CONTEXT,
    "cp_keys": CONTEXT,
    "ep": EXPERTS,
    "etp": EXPERTS,
    "stage": EXPERTS,
}

ENDS = ("embed", "head")

Kind = int | Literal["embed", "head"]
"""A layer kind of the anatomy, or an end of the model."""

Spent = dict[str, float]
"""Part -> seconds."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class UnitTime:
    """Seconds of one unit and one micro-batch, part by part, without gathering weights and reducing gradients.

    Attributes:
        forward: of the forward pass.
        again: of what backward repeats of it; both halves of a split backward pass do.
        inputs: of gradients of the inputs.
        weights: of gradients of the weights.
        split: of what gradients of the weights compute again if they are a pass by themselves.
        forward_work: of computation in the forward pass.
        backward_work: of computation in the whole backward pass.
    """

    forward: Spent = field(default_factory=dict)
    again: Spent = field(default_factory=dict)
    inputs: Spent = field(default_factory=dict)
    weights: Spent = field(default_factory=dict)
    split: Spent = field(default_factory=dict)
    forward_work: float = 0.0
    backward_work: float = 0.0


NO_TIME = UnitTime()


def add_up(*parts: Spent) -> Spent:
    """The sum of several."""
    total: Spent = {}
    for part in parts:
        for name, seconds in part.items():
            total[name] = total.get(name, 0.0) + seconds
    return total


def times(part: Spent, factor: float) -> Spent:
    """Each of the seconds times a factor."""
    return {name: seconds * factor for name, seconds in part.items()}


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
    return {name: seconds for name, seconds in spent.items() if seconds}


class UnitTimes:
    """The times of units on a device, each computed once.

    Args:
        device: of every rank.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._work: dict[tuple[object, ...], tuple[Spent, ...]] = {}
        self._waits: dict[tuple[object, ...], tuple[Spent, ...]] = {}
        self._units: dict[tuple[object, ...], UnitTime] = {}
        self._remembered: dict[Hashable, Any] = {}

    def remembered(self, key: Hashable, compute: Callable[[], _T]) -> _T:
        """What ``compute`` has returned for this key before, in whatever setting; else it is called.

        Args:
            key: everything that the result depends on, besides what settings that share these times have in common.
            compute: without arguments.
        """
        if key not in self._remembered:
            self._remembered[key] = compute()
        found: _T = self._remembered[key]
        return found

    def of(self, setting: Setting, kind: Kind, recomputed: float = 0.0) -> UnitTime:
        """One unit.

        Args:
            setting: what is planned.
            kind: which.
            recomputed: share of equal blocks that backward recomputes as a whole.
        """
        dims, tokens = setting.dims, setting.tokens
        mode = setting.checkpointing, setting.every, setting.budget, setting.compiles, setting.trains, recomputed
        size = kind, dims.tp, dims.cp, tokens.per_micro_batch, tokens.sequence, tokens.scored, tokens.shared
        # Up to the devices of a node the number of ranks tells where groups lie.
        world = min(dims.world_size, self.device.devices_per_node)
        stage = dims.stage_size if setting.aux_loss == "global_batch" else 0
        groups = *size, dims.ep, dims.etp, world, stage, setting.entropy
        found = self._units.get((*groups, *mode))
        if found is None:
            # Collectives are the same with any checkpointing, which only decides how many of them are repeated.
            waits = self._waits_of(setting, kind, (*groups, setting.compiles, setting.trains))
            found = self._units[*groups, *mode] = self._unit(setting, kind, recomputed, (*size, *mode), waits)
        return found

    def _waits_of(self, setting: Setting, kind: Kind, key: tuple[object, ...]) -> tuple[Spent, ...]:
        """Waiting for collectives of the forward pass, of the backward pass, and of a repeated forward pass."""
        if key not in self._waits:
            each = Passes(1, 0), Passes(0, 1), Passes(0, 0, 1)
            self._waits[key] = tuple(self._wait(setting, kind, passes) for passes in each)
        return self._waits[key]

    def _unit(
        self, setting: Setting, kind: Kind, recomputed: float, key: tuple[object, ...], waits: tuple[Spent, ...]
    ) -> UnitTime:
        if key not in self._work:
            passes = _passes(setting, kind, recomputed)
            each = passes.forward, passes.recompute, passes.backward_input, passes.backward_weight, passes.split_weight
            self._work[key] = tuple(spend(work, setting, self.device) for work in each)
        forward, again, inputs, weights, split = self._work[key]
        wait, wait_backward, wait_again = waits
        recompute = {RECOMPUTE: sum(again.values())}
        return UnitTime(
            forward=add_up(forward, wait),
            again=add_up(recompute, times(wait_again, recomputed)),
            inputs=add_up(inputs, wait_backward) if setting.trains else {},
            weights=weights if setting.trains else {},
            split=split,
            forward_work=sum(forward.values()),
            backward_work=sum(inputs.values()) + sum(weights.values()) + recompute[RECOMPUTE],
        )

    def exchange(self, setting: Setting, kind: Kind) -> tuple[float, float]:
        """Seconds in which a unit exchanges tokens with expert ranks, in the forward and in the backward pass."""
        layer = None if kind in ENDS else setting.anatomy.kinds[kind]
        if layer is None or layer.experts is None:
            return 0.0, 0.0
        alone = replace(setting, aux_loss="none")
        seconds = []
        for passes in (Passes(1, 0), Passes(0, 1)):
            ledger = Ledger()
            add_experts(ledger, alone, layer.experts, passes)
            seconds.append(sum(self._seconds_in(setting, ledger).values()))
        return seconds[0], seconds[1]

    def _wait(self, setting: Setting, kind: Kind, passes: Passes) -> Spent:
        ledger = Ledger()
        if kind == "embed":
            add_embedding(ledger, setting, passes)
        elif kind == "head":
            add_head(ledger, setting, passes)
        else:
            layer = setting.anatomy.kinds[kind]
            add_layer(ledger, setting, layer, passes)
            if layer.experts is not None:
                add_experts(ledger, setting, layer.experts, passes)
        return self._seconds_in(setting, ledger)

    def _seconds_in(self, setting: Setting, ledger: Ledger) -> Spent:
        spent: Spent = {}
        for transfer in ledger.transfers(0):
            part = _WAITS[transfer.axis]
            spent[part] = spent.get(part, 0.0) + seconds_of(transfer, setting.dims, self.device)
        return spent

    def gather(self, setting: Setting, dense: Shards, experts: Shards = NOTHING) -> float:
        """Seconds of gathering the weights of a unit."""
        number = setting.types.compute
        return self._collect(setting, "all_gather", dense, experts, number) + self._move(setting, dense, experts)

    def reduce(self, setting: Setting, dense: Shards, experts: Shards = NOTHING) -> float:
        """Seconds of summing the gradients of a unit over data ranks."""
        number, replicas = setting.types.reduce, setting.dims.dp_replicate
        seconds = self._collect(setting, "reduce_scatter", dense, experts, number)
        for group in (dense, experts):
            sent = 2 * group.stored * number * (replicas - 1) / replicas
            seconds += self._seconds(setting, "dp_replicate", replicas, "all_reduce", sent)
        return seconds + self._move(setting, dense, experts)

    def copies(self, setting: Setting, dense: Shards, experts: Shards = NOTHING) -> Copies:
        """Seconds of copying weights and gradients of a unit around collectives."""
        dims = setting.dims
        moved = copies(setting, dense, dims.dp_shard * dims.cp) + copies(setting, experts, dims.edp)
        bandwidth = self.device.memory_bandwidth * self.device.efficiency.memory
        return Copies(moved.gather / bandwidth, moved.reduce / bandwidth, moved.accumulate / bandwidth)

    def _collect(self, setting: Setting, collective: Collective, dense: Shards, experts: Shards, number: int) -> float:
        dims = setting.dims
        ranks = dims.dp_shard * dims.cp
        seconds = self._seconds(setting, "fsdp", ranks, collective, dense.stored * (ranks - 1) * number)
        sent = experts.stored * (dims.edp - 1) * number
        return seconds + self._seconds(setting, "edp", dims.edp, collective, sent)

    def _seconds(self, setting: Setting, axis: Axis, size: int, collective: Collective, sent: float) -> float:
        if not sent:
            return 0.0
        return seconds_of(Transfer(axis, size, collective, "", 1, sent, overlaps=True), setting.dims, self.device)

    def _move(self, setting: Setting, dense: Shards, experts: Shards) -> float:
        """Between host and device, of offloaded shards."""
        moved = (dense.stored + experts.stored) * setting.types.master if setting.offloads else 0
        return moved / self.device.host_bandwidth


def _passes(setting: Setting, kind: Kind, recomputed: float) -> UnitPasses:
    sizes = sizes_of(setting.anatomy)
    if kind == "embed":
        return embedding_passes(setting)
    if kind == "head":
        return head_passes(setting, sizes.head)
    return layer_passes(setting, sizes.kinds[kind], recomputed)
