"""Memory of activations: what layers keep for backward, and what exists for a moment while a block or the head runs.

Blocks are lists of operations (``block_operations``), from which memory follows by torch's rules (``operations``). With
a pipeline, the lists of the schedule are replayed: a micro-batch's activations of a stage live from F to B, or to W.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import lcm

from archon_core.contracts.pipeline import Action, ActionKind
from archon_core.models.anatomy import LayerAnatomy
from archon_core.models.stage import Stage
from archon_plan.block_operations import BlockSizes, ExpertSizes, block_operations
from archon_plan.head_memory import HeadUsage, head_usage
from archon_plan.operations import (
    Usage,
    fully_recomputed,
    selectively_recomputed,
    within_budget,
    without_checkpointing,
)
from archon_plan.results import MemoryPart
from archon_plan.setting import Checkpointing, Setting

IMBALANCE = 1.25
"""Rows of the busiest rank of experts over the mean, by default. ``ep`` is the worst case."""


@dataclass(frozen=True)
class Moment:
    """Memory of activations at a moment of a step, in bytes.

    Attributes:
        place: what runs: ``block``, ``head``, or ``forward``.
        kept: kept for backward by the micro-batches in flight.
        head: of the head: what it keeps, and what exists while it runs.
        running: of the block that runs, besides what it kept.
        deferred: gradients that halves of backward passes have left for W.
        messages: of the pipeline.
        in_flight: pairs of a stage and a micro-batch whose activations exist.
    """

    place: str
    kept: float = 0.0
    head: float = 0.0
    running: float = 0.0
    deferred: float = 0.0
    messages: float = 0.0
    in_flight: int = 0

    @property
    def total(self) -> float:
        """All of it."""
        return self.kept + self.head + self.running + self.deferred + self.messages

    def plus(self, count: int, stage: _StageUsage) -> Moment:
        """The same with the activations of one stage added, or removed with a count of -1."""
        return replace(
            self,
            kept=self.kept + count * stage.kept,
            head=self.head + count * stage.head_kept,
            in_flight=self.in_flight + count,
        )


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
    peak = max(activation_moments(setting, pipeline_rank, imbalance=imbalance, on_cpu=on_cpu), key=lambda m: m.total)
    return tuple(_parts(setting, peak))


def activation_moments(
    setting: Setting, pipeline_rank: int, *, imbalance: float = IMBALANCE, on_cpu: bool = False
) -> tuple[Moment, ...]:
    """For each place at which the memory of activations can peak, the moment at which it is largest there.

    The arguments are those of ``activation_parts``.
    """
    stages = [_stage(setting, stage, imbalance, on_cpu) for stage in setting.held_by(pipeline_rank)]
    if not setting.trains:
        return (max((stage.inferred for stage in stages), key=lambda moment: moment.total),)
    largest: dict[str, Moment] = {}
    for moment in _replayed(setting, pipeline_rank, stages):
        if moment.place not in largest or moment.total > largest[moment.place].total:
            largest[moment.place] = moment
    return tuple(largest.values())


def _parts(setting: Setting, moment: Moment) -> Iterator[MemoryPart]:
    mode = setting.checkpointing
    how = {
        "none": "everything that backward reads",
        "selective": "products, attention, collectives"
        if setting.every is None
        else f"blocks without every {setting.every}. whole",
        "full": "inputs of blocks",
        "memory_budget": f"upper bound for a budget of {setting.budget:g}",
    }[mode]
    flight = "" if setting.dims.pp == 1 else f", {moment.in_flight} micro-batches in flight, stages counted singly"
    if moment.kept:
        yield MemoryPart("activations", moment.kept, how + flight)
    if moment.running:
        yield MemoryPart(
            "block in progress", moment.running, "recomputed results and gradients" if mode != "none" else "gradients"
        )
    if moment.head:
        yield MemoryPart("head", moment.head, "chunks of logits and gradients" if moment.place == "head" else "kept")
    if moment.deferred:
        yield MemoryPart("gradients for W", moment.deferred, "left by I")
    if moment.messages:
        yield MemoryPart("pipeline messages", moment.messages, "one received, one being sent")


@dataclass(frozen=True)
class _StageUsage:
    """Memory of one stage for one micro-batch."""

    blocks: tuple[Usage, ...]
    around: float
    head: HeadUsage | None
    message: float
    is_first: bool
    is_last: bool

    @property
    def kept(self) -> float:
        return self.around + sum(block.kept for block in self.blocks)

    @property
    def head_kept(self) -> float:
        return 0.0 if self.head is None else self.head.kept

    @property
    def deferred(self) -> float:
        return self.message if self.is_first else sum(block.deferred for block in self.blocks)

    @property
    def running(self) -> float:
        """The most that a running block adds in backward, while earlier blocks' activations still exist."""
        most = after = 0.0
        for block in reversed(self.blocks):
            most = max(most, block.peak - block.kept - after)
            after += block.kept
        return most

    @property
    def inferred(self) -> Moment:
        blocks = max((block.forward for block in self.blocks), default=0.0)
        head = 0.0 if self.head is None else self.head.forward
        return Moment("forward", head=head) if head > blocks else Moment("forward", running=blocks)


def _stage(setting: Setting, stage: Stage, imbalance: float, on_cpu: bool) -> _StageUsage:
    anatomy, dims = setting.anatomy, setting.dims
    n, tokens = setting.local_tokens, setting.local_tokens * dims.tp
    kinds = tuple(_block_sizes(setting, kind, imbalance, on_cpu) for kind in anatomy.kinds)
    blocks = []
    for layer in stage.layers:
        checkpointing, every = setting.checkpointing, setting.every
        if checkpointing == "selective" and every is not None:
            checkpointing = "full" if (layer + 1) % every == 0 else "none"
        mode: Checkpointing = checkpointing if setting.trains else "none"
        blocks.append(_usage(kinds[anatomy.kind_of[layer]], mode, setting.budget))
    message = float(n * anatomy.hidden_size * setting.types.compute)
    # Cosines and sines, which all layers share. A stage's input and output belong to its graph.
    around = float(tokens * kinds[0].key_dim * setting.types.compute) if kinds else 0.0
    if not stage.has_embed:
        around += message
    if not stage.has_head:
        around += message
    head = None
    if stage.has_head:
        rows = -(-anatomy.vocab_size // dims.tp)
        eager = kinds[0]._replace(compiled=False, experts=None)
        head = head_usage(eager, rows, setting.tokens.scored, critic=anatomy.critic)
    return _StageUsage(tuple(blocks), around, head, message, stage.has_embed, stage.has_head)


@lru_cache(maxsize=1024)
def _usage(sizes: BlockSizes, mode: Checkpointing, budget: float) -> Usage:
    operations, given = block_operations(sizes), sizes.input_bytes
    if mode == "memory_budget":
        return within_budget(operations, given, budget)
    if mode == "full":
        return fully_recomputed(operations, given)
    # Compiled graphs choose by themselves: keeping products and recomputing the rest is also their default.
    if mode == "selective" and not sizes.compiled:
        return selectively_recomputed(operations, given)
    return without_checkpointing(operations, given)


def _block_sizes(setting: Setting, layer: LayerAnatomy, imbalance: float, on_cpu: bool) -> BlockSizes:
    dims, attention, experts = setting.dims, layer.attention, layer.experts
    owned = attention.heads.key_value / dims.tp
    read = owned if attention.heads.key_value % dims.tp == 0 else lcm(attention.heads.key_value, dims.tp) / dims.tp
    sizes = None
    if experts is not None:
        sizes = ExpertSizes(
            experts.n_experts,
            experts.top_k,
            experts.intermediate_size / dims.etp,
            experts.shared_intermediate_size,
            dims.ep,
            dims.etp,
            imbalance,
        )
    return BlockSizes(
        tokens=setting.local_tokens,
        hidden=setting.anatomy.hidden_size,
        query_heads=attention.heads.query / dims.tp,
        key_heads=read,
        owned_key_heads=owned,
        key_dim=attention.head_dim,
        value_dim=attention.value_dim,
        head_norms=attention.head_norms,
        intermediate=layer.intermediate_size / dims.tp,
        gated=layer.gated,
        experts=sizes,
        value_bytes=setting.types.compute,
        tensor_ranks=dims.tp,
        context_ranks=dims.cp,
        compiled=setting.compiles,
        on_cpu=on_cpu,
    )


def _replayed(setting: Setting, pipeline_rank: int, stages: list[_StageUsage]) -> Iterator[Moment]:
    """The moments of a pipeline rank's actions, in their order."""
    by_number = dict(zip(setting.stage_plan.held_by(pipeline_rank), stages, strict=True))
    now = Moment("forward")
    for action in setting.actions[pipeline_rank] if setting.actions else _WHOLE_MODEL:
        stage = by_number[action.stage]
        messages = 2 * stage.message if setting.dims.pp > 1 else 0.0
        if action.kind is ActionKind.FORWARD:
            now = now.plus(1, stage)
            yield replace(now, messages=messages)
            continue
        ends, runs = _role(action, stage)
        if runs:
            if stage.head is not None:
                yield replace(now, place="head", head=now.head + stage.head.peak - stage.head.kept, messages=messages)
            yield replace(now, place="block", head=now.head - stage.head_kept, running=stage.running, messages=messages)
        if ends:
            now = now.plus(-1, stage)
        if action.kind is ActionKind.BACKWARD_INPUT and not ends:
            now = replace(now, deferred=now.deferred + stage.deferred)
        elif action.kind is ActionKind.BACKWARD_WEIGHT and ends:
            now = replace(now, deferred=now.deferred - stage.deferred)


def _role(action: Action, stage: _StageUsage) -> tuple[bool, bool]:
    """Whether a backward action ends the life of activations, and whether it runs the blocks backward.

    The ends of a pipeline do not split: the last stage does everything in I, the first in W
    (``archon_pipeline.stage_passes``).
    """
    if action.kind is ActionKind.BACKWARD:
        return True, True
    if action.kind is ActionKind.BACKWARD_INPUT:
        return stage.is_last, not stage.is_first
    return not stage.is_last, stage.is_first


_WHOLE_MODEL = (Action(0, ActionKind.FORWARD, 0), Action(0, ActionKind.BACKWARD, 0))
"""Without a pipeline micro-batches run one after the other."""
