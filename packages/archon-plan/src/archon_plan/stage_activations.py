"""Activations of one pipeline stage for one micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from archon_core.models.stage import Stage
from archon_plan.block_operations import block_operations
from archon_plan.block_sizes import BlockSizes, block_sizes
from archon_plan.checkpointing import (
    Usage,
    fully_recomputed,
    kept_bytes,
    selectively_recomputed,
    within_budget,
    without_checkpointing,
)
from archon_plan.head_memory import HeadUsage, head_usage
from archon_plan.liveness import Operations, fuse
from archon_plan.setting import Checkpointing, Setting

EMBEDDING_BYTES = 9
"""Per token, what a vocabulary sharded over tensor ranks keeps: the row on this rank, and whether another has it."""


@dataclass(frozen=True)
class StageUsage:
    """Memory of one stage for one micro-batch, in bytes.

    Attributes:
        kept: by blocks, from forward to backward, with the stage's input and output.
        dispatched: the part of ``kept`` that is rows for experts.
        running: the most that a running block adds to ``kept``, forward or in backward, while the blocks before it keep
            theirs.
        half: likewise in the first half of a split backward pass.
        deferred: gradients that the first half leaves to the second.
        head: the final norm and the head; ``None`` on a stage without.
        forward: peak of a forward pass that keeps nothing.
        message: hidden states that go to another stage.
        is_first: whether it starts from token ids.
        is_last: whether losses are computed on it.
        second: the most that a block adds in the second half of a split backward pass.
        shared: the part of ``kept`` that lives until the last block has run: cosines and sines, input and output.
    """

    kept: float
    dispatched: float
    running: float
    half: float
    deferred: float
    head: HeadUsage | None
    forward: float
    message: float
    is_first: bool
    is_last: bool
    second: float = 0.0
    shared: float = 0.0

    @property
    def head_kept(self) -> float:
        """What the head keeps from forward to backward."""
        return 0.0 if self.head is None else self.head.kept


def stage_usage(setting: Setting, stage: Stage, *, imbalance: float, on_cpu: bool) -> StageUsage:
    """The memory of ``stage`` on one of its ranks. The arguments are those of ``activations.activation_parts``."""
    anatomy, dims, value_bytes = setting.anatomy, setting.dims, setting.types.compute
    kinds = tuple(block_sizes(setting, kind, imbalance=imbalance, on_cpu=on_cpu) for kind in anatomy.kinds)
    alike = [(anatomy.kind_of[layer], setting.checkpointing_of(layer)) for layer in stage.layers]
    usages = {(kind, mode): block_usage(kinds[kind], mode, setting.budget) for kind, mode in dict.fromkeys(alike)}
    blocks = [usages[one] for one in alike]
    message = float(setting.local_tokens * anatomy.hidden_size * value_bytes)
    region_tokens = setting.local_tokens * dims.tp
    # Cosines and sines, which all layers share: of both halves of a head, or in latent attention, which rotates
    # neighbours, of one.
    tables = 1 if all(kind.latent is not None for kind in kinds) else 2
    around = float(tables * region_tokens * max((kind.rotated_dim for kind in kinds), default=0) * value_bytes)
    # A stage's input is a leaf of its graph, and its output the root: both live as long as the graph.
    keeps_input = bool(blocks) and blocks[0].keeps_input
    around += message * ((not stage.has_embed and not keeps_input) + (not stage.has_head))
    if stage.has_embed and dims.tp > 1:
        around += region_tokens * EMBEDDING_BYTES
    head = None
    if stage.has_head:
        eager = kinds[0]._replace(compiled=False, experts=None)
        rows = -(-anatomy.vocab_size // dims.tp)
        head = head_usage(eager, rows, setting.tokens.scored, critic=anatomy.critic)
    running, half = _running(blocks)
    deferred = sum(block.deferred for block in blocks)
    return StageUsage(
        kept=around + sum(block.kept for block in blocks),
        dispatched=sum(block.dispatched for block in blocks),
        shared=around,
        running=running,
        half=half,
        # The first stage leaves everything to the second half, so only the gradient of its output waits.
        deferred=message if stage.has_embed else deferred,
        head=head,
        forward=max((block.forward for block in blocks), default=0.0),
        message=message,
        is_first=stage.has_embed,
        is_last=stage.has_head,
        second=max((block.second - block.kept for block in blocks), default=0.0),
    )


def _running(blocks: list[Usage]) -> tuple[float, float]:
    """What running blocks add at most, in whole and in split backward passes."""
    running = half = after = deferred = 0.0
    for block in reversed(blocks):
        # While a block runs forward, those after it keep nothing yet.
        forward = block.forward - block.kept - after
        running = max(running, block.peak - block.kept - after, forward)
        half = max(half, block.half - block.kept + deferred, forward)
        after, deferred = after + block.kept, deferred + block.deferred
    return running, half


@lru_cache(maxsize=4096)
def block_usage(sizes: BlockSizes, mode: Checkpointing, budget: float) -> Usage:
    """The memory of one block."""
    operations, given = _operations(sizes, mode), sizes.input_bytes
    if mode == "memory_budget":
        return within_budget(operations, given, budget)
    if mode == "full":
        return fully_recomputed(operations, given)
    if mode == "selective" and not sizes.compiled:
        return selectively_recomputed(operations, given)
    return without_checkpointing(operations, given)


def block_kept(sizes: BlockSizes, mode: Checkpointing, budget: float) -> float:
    """What one block keeps for backward: ``block_usage(...).kept``, in less time."""
    recomputed = mode != "selective" or not sizes.compiled
    return kept_bytes(_operations(sizes, mode), sizes.input_bytes, mode if recomputed else "none", budget)


def _operations(sizes: BlockSizes, mode: Checkpointing) -> Operations:
    """Of one block. Compiled graphs recompute by themselves."""
    operations = block_operations(sizes)
    return fuse(operations) if mode == "selective" and sizes.compiled else operations
