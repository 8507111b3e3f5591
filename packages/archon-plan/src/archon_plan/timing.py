"""How long an optimizer step takes, what its time goes into, and what limits it.

The times of the actions of every stage (``stage_times``) go through the pipeline package's replay of the schedule's
lists. The reduction of gradients, their norm and the optimizer follow. The formulas are a roofline model: FLOPs over a
share of the peak, bytes over a share of the bandwidth, latency and bytes for collectives. Ranks that share processor
cores wait for them (``shared_cores``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from archon_core.contracts.pipeline import PIPELINE, ActionKind, PipelineSpec, Replay, TimedActions
from archon_core.models.stage import Stage
from archon_plan.collectives import seconds_of
from archon_plan.devices import Device
from archon_plan.flops import stage_work
from archon_plan.optimizer_time import norm_seconds, update_seconds
from archon_plan.results import StepTime, Transfer
from archon_plan.setting import Setting
from archon_plan.shared_cores import sharing_of, with_threads
from archon_plan.stage_kinds import Composition, stage_kinds
from archon_plan.stage_times import GRADIENTS, WEIGHTS, StageTimes, stage_times
from archon_plan.traffic import transfers_once
from archon_plan.unit_times import COPIES, Spent, UnitTimes, add_up, times
from archon_plan.units import stage_units, units_of

BUBBLE = "waiting for pipeline ranks"
OPTIMIZER = "optimizer"
NORM = "gradient norm"
SUMS = "sums over ranks once per step"
MESSAGES = "sending to other stages"
CORES = "waiting for a core"

_LIMITS = {
    "dense products": "the peak of dense products",
    "products of experts": "the products of experts",
    "attention": "attention",
    "head": "the head's products",
    "routers": "routers, which compute in fp32",
    "norms, activations and sums": "memory bandwidth, in operations between products",
    "recompute": "recomputation",
    COPIES: "copies of weights and gradients around collectives",
    "launching operations": "the host, which launches operations more slowly than the device runs them",
    "waiting for tensor ranks": "traffic between tensor ranks",
    "waiting for context ranks": "traffic between context ranks",
    "waiting for expert ranks": "traffic between expert ranks",
    WEIGHTS: "gathering weights over data ranks",
    GRADIENTS: "summing gradients over data ranks",
    BUBBLE: "the bubble of the pipeline",
    OPTIMIZER: "the optimizer",
    NORM: "the gradient norm",
    SUMS: "sums over ranks",
    MESSAGES: "messages between stages",
    CORES: "processor cores, which ranks share",
}


@dataclass(frozen=True)
class PipelineTimes:
    """A replayed step of the pipeline.

    Attributes:
        end: of the last action.
        ends: for each pipeline rank, the end of its last action.
        busy: for each pipeline rank, the sum of its actions, waiting for a core included.
        bubble: idle over busy time.
    """

    end: float
    ends: tuple[float, ...]
    busy: tuple[float, ...]
    bubble: float

    @classmethod
    def of(cls, timed: TimedActions) -> PipelineTimes:
        """Of the actions of all ranks with their start and end."""
        ends = tuple(max((end for _, _, end in rank), default=0.0) for rank in timed)
        busy = tuple(sum(end - start for _, start, end in rank) for rank in timed)
        total, end = sum(busy), max(ends)
        return cls(end, ends, busy, (len(timed) * end - total) / total if total else 0.0)


@lru_cache(maxsize=1)
def installed_replay() -> Replay:
    """The replay of the installed pipeline package.

    Raises:
        UnknownNameError, PluginError: there is none, or it cannot be imported.
    """
    from archon_core import registry

    replay: Replay = registry().get(PipelineSpec, PIPELINE).load_part("replay")
    return replay


def step_time(setting: Setting, device: Device, units: UnitTimes | None = None) -> StepTime:
    """Predict one optimizer step, or one forward pass over its tokens for a model that is not trained.

    Args:
        setting: what is planned.
        device: of every rank.
        units: times of units that earlier settings have left, on the same device.

    Raises:
        UnknownNameError, PluginError: a pipeline has no installed package.
    """
    return StepClock(setting, device, units).step()


class StepClock:
    """The times of one setting.

    Args:
        setting: what is planned.
        device: of every rank; on a CPU, with the figures of one thread.
        units: times of units that earlier settings have left, for ranks with as many threads.
    """

    def __init__(self, setting: Setting, device: Device, units: UnitTimes | None = None) -> None:
        device = with_threads(device, setting.dims.world_size)
        self._setting, self._device = setting, device
        self._units = units = units or UnitTimes(device)
        mode = setting.checkpointing, setting.every, setting.trains
        key = "kinds", setting.stage_plan, setting.dims.pp, mode
        self._kinds = kinds = units.remembered(key, lambda: stage_kinds(setting))
        self._times = tuple(map(self._stage_times, kinds.stages, kinds.compositions))
        self._stages = [self._times[kind] for kind in kinds.of]
        self._sharing = sharing_of(setting.dims, device)

    def _stage_times(self, stage: Stage, composition: Composition) -> StageTimes:
        setting, units = self._setting, self._units
        tokens = setting.tokens
        size = setting.dims, tokens.per_micro_batch, tokens.sequence, tokens.scored, tokens.shared, setting.entropy
        mode = setting.checkpointing, setting.every, setting.budget, setting.compiles, setting.trains
        weights = setting.reshards, setting.reshards_last, setting.reduces_each, tokens.n_micro_batches > 1
        key = "stage", composition, size, mode, weights
        return units.remembered(key, lambda: stage_times(setting, stage, stage_units(setting, stage), units))

    def step(self) -> StepTime:
        """The whole step."""
        setting, device, sharing = self._setting, self._device, self._sharing
        ranks = range(setting.dims.pp)
        actions = [self._actions_of(rank) for rank in ranks]
        pipeline = self._pipeline(actions)
        after = [self.after_passes(rank) for rank in ranks]
        updates = [self._update(rank) for rank in ranks]
        # A later stage gathers its weights when the first micro-batch arrives.
        first_gather = sum(self.first_gather(rank) for rank in ranks)
        # The norm is a number of all ranks, so they wait for each other once more before the update.
        crowd = sharing.all_ranks
        summed = max(end + crowd * sum(own.values()) for end, own in zip(pipeline.ends, after, strict=True))
        total = sharing.one_stage * first_gather + summed + crowd * max(sum(own.values()) for own in updates)
        busiest = max(ranks, key=lambda rank: pipeline.busy[rank] + crowd * sum(after[rank].values()))
        parts = add_up(*self._spent_on(actions[busiest]))
        last = sum(after[busiest].values()) + sum(updates[busiest].values())
        waited = pipeline.busy[busiest] - sum(parts.values())
        waited += (sharing.one_stage - 1) * first_gather + (crowd - 1) * last
        parts = add_up(parts, {WEIGHTS: first_gather}, after[busiest], updates[busiest], {CORES: waited})
        parts[BUBBLE] = total - sum(parts.values())
        # Without a pipeline, the rest is what rounding leaves.
        parts = {name: seconds for name, seconds in parts.items() if seconds > 1e-9 * total}
        tokens = setting.tokens.per_micro_batch * setting.tokens.n_micro_batches
        tokens *= setting.dims.dp_replicate * setting.dims.dp_shard
        flops = model_flops(setting)
        peak = device.peak(setting.types.compute) * setting.dims.world_size / crowd
        return StepTime(
            total=total,
            parts=parts,
            bubble=pipeline.bubble,
            flops=flops,
            mfu=flops / (peak * total) if total else 0.0,
            tokens_per_second=tokens / total if total else 0.0,
            limit=limit_of(parts, total),
        )

    def lower_bound(self) -> float:
        """Seconds that the step takes at least, whatever the order of actions, and with a core for every rank.

        A pipeline rank cannot begin before a micro-batch has passed the stages before its first one, and gradients
        pass them again behind its last backward pass, unless that may be half of one. It needs no action lists.
        """
        setting = self._setting
        kinds, times, n = self._kinds, self._times, setting.tokens.n_micro_batches
        splits = setting.schedule is not None and setting.schedule.splits_backward
        forward = [sum(stage.forward.values()) for stage in times]
        backward = [sum(stage.backward.values()) for stage in times]
        slowest = last = 0.0
        for rank in kinds.ranks:
            seconds = sum(count * (n * (forward[kind] + backward[kind])) for kind, count in rank.held)
            seconds += sum(count * forward[kind] for kind, count in rank.before)
            if not splits:
                seconds += sum(count * backward[kind] for kind, count in rank.before)
            seconds += sum(count * times[kind].reduction for kind, count in rank.held)
            slowest = max(slowest, seconds)
            last = max(last, sum(self._update(rank.last).values()))
        return slowest + last + sum(count * times[kind].first_gather for kind, count in kinds.counts)

    def _actions_of(self, rank: int) -> dict[tuple[int, ActionKind], int]:
        """How often a rank runs each kind of action of each stage."""
        setting = self._setting
        n = setting.tokens.n_micro_batches
        if setting.actions:
            counts: dict[tuple[int, ActionKind], int] = {}
            for action in setting.actions[rank]:
                key = (action.stage, action.kind)
                counts[key] = counts.get(key, 0) + 1
            return counts
        kinds = (ActionKind.FORWARD, ActionKind.BACKWARD) if setting.trains else (ActionKind.FORWARD,)
        return {(stage, kind): n for stage in setting.stage_plan.held_by(rank) for kind in kinds}

    def _spent_on(self, counts: dict[tuple[int, ActionKind], int]) -> list[Spent]:
        return [times(self.action(stage, kind), count) for (stage, kind), count in counts.items()]

    def action(self, stage: int, kind: ActionKind) -> Spent:
        """Seconds of an action, part by part. The ends of a pipeline do not split their backward passes
        (``archon_pipeline.stage_passes``): the first stage does all of it in W, the last one in I."""
        spent = self._computed(stage, kind)
        # On a CPU the rank that sends a message copies it itself.
        if spent and self._device.kind == "cpu" and self._sends(stage, kind):
            return add_up(spent, {MESSAGES: self._message})
        return spent

    def _sends(self, stage: int, kind: ActionKind) -> bool:
        """Whether the result of an action goes to another rank."""
        if kind is ActionKind.BACKWARD_WEIGHT and stage > 0:
            return False
        to = stage + 1 if kind is ActionKind.FORWARD else stage - 1
        rank_of = self._setting.stage_plan.rank_of
        return 0 <= to < len(rank_of) and rank_of[to] != rank_of[stage]

    def _computed(self, stage: int, kind: ActionKind) -> Spent:
        own, last = self._stages[stage], len(self._stages) - 1
        if kind is ActionKind.FORWARD:
            return own.forward
        if kind is ActionKind.BACKWARD:
            return own.backward
        if stage in (0, last):
            return own.backward if (kind is ActionKind.BACKWARD_WEIGHT) == (stage == 0) else {}
        return own.backward_input if kind is ActionKind.BACKWARD_INPUT else own.backward_weight

    def timeline(self) -> TimedActions:
        """The actions of a pipeline with their start and end in seconds; empty without a pipeline."""
        setting = self._setting
        if not setting.actions:
            return ()
        stages = range(len(self._stages))
        seconds = [{kind: sum(self.action(stage, kind).values()) for kind in ActionKind} for stage in stages]
        # The replay of another package may not know this argument, which only shared cores need.
        shared = {} if self._sharing.cores is None else {"cores": self._sharing.cores}
        return installed_replay()(setting.actions, setting.stage_plan.rank_of, seconds, message=self._message, **shared)

    def _pipeline(self, counts: list[dict[tuple[int, ActionKind], int]]) -> PipelineTimes:
        if not self._setting.actions:
            spent = self._sharing.all_ranks * sum(sum(part.values()) for part in self._spent_on(counts[0]))
            return PipelineTimes(spent, (spent,), (spent,), 0.0)
        return PipelineTimes.of(self.timeline())

    @cached_property
    def _message(self) -> float:
        """Seconds from the end of an action until another rank has its result."""
        dims, number = self._setting.dims, self._setting.types.compute
        sent = self._setting.local_tokens * self._setting.anatomy.hidden_size * number
        return seconds_of(Transfer("pp", dims.pp, "send", "hidden states", 1, sent, overlaps=True), dims, self._device)

    def after_passes(self, rank: int) -> Spent:
        """What follows the passes: a pipeline's reduction of gradients, and sums over ranks."""
        setting, device = self._setting, self._device
        return {
            GRADIENTS: sum(self._stages[stage].reduction for stage in setting.stage_plan.held_by(rank)),
            SUMS: sum(seconds_of(each, setting.dims, device) for each in transfers_once(setting, rank)),
        }

    def first_gather(self, rank: int) -> float:
        """Seconds that the first micro-batch waits for weights that a rank gathers once per step."""
        return sum(self._stages[stage].first_gather for stage in self._setting.stage_plan.held_by(rank))

    def _update(self, rank: int) -> Spent:
        setting, device = self._setting, self._device
        if not setting.trains:
            return {}

        def compute() -> Spent:
            groups = units_of(setting, rank)
            return {
                NORM: norm_seconds(setting, device, groups),
                OPTIMIZER: update_seconds(setting, device, rank, groups),
            }

        held = self._kinds.ranks[self._kinds.rank_of[rank]].held
        composition = tuple((self._kinds.compositions[kind], count) for kind, count in held)
        return self._units.remembered(("update", composition, setting.dims), compute)


def model_flops(setting: Setting) -> float:
    """Multiplications and additions of one step on all ranks, without anything recomputed: three times those of the
    forward pass, or once for a model that is not trained."""
    forward = 0.0
    for stage in setting.stage_plan.stages:
        forward += sum(count * passes.forward.flops for count, passes in stage_work(setting, stage))
    passes = 3 if setting.trains else 1
    return passes * forward * setting.dims.stage_size * setting.tokens.n_micro_batches


def limit_of(parts: Spent, total: float) -> str:
    """What takes most of a step, as a phrase with its share."""
    if not parts or not total:
        return "nothing to do"
    name = max(parts, key=lambda part: parts[part])
    return f"{_LIMITS.get(name, name)} ({parts[name] / total:.0%} of the step)"
