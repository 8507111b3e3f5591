"""Memory of activations: what layers keep for backward, and what exists for a moment while a block or the head runs.

Blocks are lists of operations (``block_operations``, ``expert_operations``), from which memory follows by torch's rules
(``liveness``, ``checkpointing``). With a pipeline, the lists of the schedule are replayed: a micro-batch's activations
of a stage live from F to B, or to W.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from archon_core.contracts.pipeline import Action, ActionKind
from archon_plan.rank_states import RankState, Role, leading_states, states
from archon_plan.results import MemoryPart
from archon_plan.setting import Setting
from archon_plan.stage_activations import StageUsage, stage_usage

IMBALANCE = 1.25
"""Rows of the busiest rank of experts over the mean, by default. ``ep`` is the worst case."""


@dataclass(frozen=True)
class ActivationMoment:
    """Memory of activations at a moment of a step, in bytes.

    Attributes:
        place: what runs: a ``block`` or the ``head`` in backward, or ``forward``.
        kept: by blocks, for backward, for all micro-batches in flight.
        dispatched: kept rows that were sent to experts.
        head: of the head: what it keeps, and what exists while it runs.
        running: of the running block, besides what it kept: recomputed results, gradients of activations, and its
            weights' gradients in the compute type.
        deferred: gradients that halves of backward passes have left for W.
        messages: of the pipeline.
        in_flight: pairs of a stage and a micro-batch that keep activations.
        shared: the part of ``kept`` that lives until the last block of a stage has run.
    """

    place: str = "forward"
    kept: float = 0.0
    dispatched: float = 0.0
    head: float = 0.0
    running: float = 0.0
    deferred: float = 0.0
    messages: float = 0.0
    in_flight: int = 0
    shared: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.kept + self.dispatched + self.head + self.running + self.deferred + self.messages


def activation_parts(
    setting: Setting, pipeline_rank: int, *, imbalance: float = IMBALANCE, on_cpu: bool = False
) -> tuple[MemoryPart, ...]:
    """The memory of activations of a pipeline rank at its peak; the parts add up to it.

    Args:
        setting: the engine.
        pipeline_rank: which; its ranks with the most tokens and rows are meant.
        imbalance: rows of the busiest rank of experts over the mean.
        on_cpu: count the temporaries of CPU kernels instead of CUDA's.
    """
    moments = activation_moments(setting, pipeline_rank, imbalance=imbalance, on_cpu=on_cpu)
    return tuple(moment_parts(setting, max(moments, key=lambda moment: moment.total)))


def activation_moments(
    setting: Setting, pipeline_rank: int, *, imbalance: float = IMBALANCE, on_cpu: bool = False
) -> tuple[ActivationMoment, ...]:
    """For each place at which the memory of activations can peak, the moment at which it is largest there.

    The arguments are those of ``activation_parts``.
    """
    stages = [
        stage_usage(setting, stage, imbalance=imbalance, on_cpu=on_cpu) for stage in setting.held_by(pipeline_rank)
    ]
    if not setting.trains:
        return tuple(_inference(stage) for stage in stages)
    by_number = dict(zip(setting.stage_plan.held_by(pipeline_rank), stages, strict=True))
    actions = setting.actions[pipeline_rank] if setting.actions else _WHOLE_MODEL
    largest: dict[str, ActivationMoment] = {}
    for state in leading_states(actions, _roles(by_number)):
        for moment in _moments(state, by_number, sends=setting.dims.pp > 1):
            if moment.place not in largest or moment.total > largest[moment.place].total:
                largest[moment.place] = moment
    return tuple(largest.values())


def replay(actions: tuple[Action, ...], stages: dict[int, StageUsage], *, sends: bool) -> Iterator[ActivationMoment]:
    """The moments of a pipeline rank's actions, in their order.

    Args:
        actions: of the rank.
        stages: stage index -> memory, for the stages of the rank.
        sends: whether hidden states and gradients go to other ranks.
    """
    for state in states(actions, _roles(stages)):
        yield from _moments(state, stages, sends=sends)


def _roles(stages: dict[int, StageUsage]) -> tuple[Role, ...]:
    return tuple((number, stage.is_first, stage.is_last) for number, stage in stages.items())


def _moments(state: RankState, stages: dict[int, StageUsage], *, sends: bool) -> Iterator[ActivationMoment]:
    """The moments of one action."""
    now, stage = _now(stages, state), stages[state.stage]
    # One message has arrived, and the last one sent may still be read.
    messages = 2 * stage.message if sends else 0.0
    if state.kind is ActionKind.FORWARD:
        yield replace(now, messages=messages)
    if state.runs:
        if stage.head is not None:
            yield replace(now, place="head", head=now.head + stage.head.peak - stage.head.kept, messages=messages)
        running = stage.half if state.is_half else stage.running
        yield replace(now, place="block", head=now.head - stage.head_kept, running=running, messages=messages)
    elif state.kind is ActionKind.BACKWARD_WEIGHT and not stage.is_last:
        yield replace(now, place="block", running=stage.second, messages=messages)


def _now(stages: dict[int, StageUsage], state: RankState) -> ActivationMoment:
    """What is kept of the micro-batches whose activations exist, and of those whose W is to come."""
    counted = [*zip(state.alive, state.deferred, stages.values(), strict=True)]
    return ActivationMoment(
        kept=sum(count * (stage.kept - stage.dispatched) for count, _, stage in counted),
        dispatched=sum(count * stage.dispatched for count, _, stage in counted),
        head=sum(count * stage.head_kept for count, _, stage in counted),
        deferred=sum(count * stage.deferred for _, count, stage in counted),
        in_flight=sum(state.alive),
        shared=sum(count * stage.shared for count, _, stage in counted),
    )


_WHOLE_MODEL = (Action(0, ActionKind.FORWARD, 0), Action(0, ActionKind.BACKWARD, 0))
"""Without a pipeline micro-batches run one after the other."""


def _inference(stage: StageUsage) -> ActivationMoment:
    """The peak of a forward pass without gradients."""
    head = 0.0 if stage.head is None else stage.head.forward
    return ActivationMoment(head=head) if head > stage.forward else ActivationMoment(running=stage.forward)


def moment_parts(setting: Setting, moment: ActivationMoment) -> Iterator[MemoryPart]:
    """A moment as parts of a report. Parts of 0 bytes are left out."""
    pipelined = setting.dims.pp > 1
    flight = f" of {moment.in_flight} micro-batches in flight, counted per stage" if pipelined else ""
    for name, size, note in (
        ("activations", moment.kept, f"{_kept_note(setting)}{flight}"),
        ("expert dispatch", moment.dispatched, "rows received from other ranks, and their order"),
        ("running block", moment.running, "recomputed results and gradients" if setting.trains else "one block"),
        ("head", moment.head, "chunks of logits and gradients" if moment.place == "head" else "hidden states"),
        ("split backward", moment.deferred, "gradients that I leaves to W"),
        ("pipeline messages", moment.messages, "one received, one being sent"),
    ):
        if size:
            yield MemoryPart(name, size, note)


def _kept_note(setting: Setting) -> str:
    match setting.checkpointing:
        case "none":
            return "everything that backward reads"
        case "selective" if setting.every is None:
            return "results of products, attention and collectives"
        case "selective":
            return f"everything in all blocks but each {setting.every}., which keeps its input"
        case "full":
            return "inputs of blocks"
    return f"upper bound: {setting.budget:g} of what compiled graphs can recompute, and all that they cannot"
