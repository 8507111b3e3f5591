"""What is planned: one model on one layout with the settings of its engine."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from archon_core.contracts.pipeline import ActionKind, RankActions, ScheduleSpec, StagePlan
from archon_core.layout.dims import ParallelDims
from archon_core.models.anatomy import ModelAnatomy
from archon_core.models.stage import Stage
from archon_engine.options.context_style import AUTO, ContextSplit, split_context
from archon_plan.extents import context_sizes, token_multiple

Checkpointing = Literal["none", "selective", "full", "memory_budget"]
AuxiliaryLoss = Literal["none", "sequence", "global_batch"]


@dataclass(frozen=True)
class SharedPrompt:
    """A prompt whose samples are in one micro-batch, which computes it once (``enable_tree_training``).

    Attributes:
        tokens: of the prompt.
        samples: mean number of sequences of a micro-batch that begin with it.
    """

    tokens: int
    samples: float


@dataclass(frozen=True)
class Tokens:
    """The tokens of one optimizer step.

    Attributes:
        per_micro_batch: T, tokens of one micro-batch of one data rank, padding included: t x c ranks share them. A
            shared prompt counts once.
        n_micro_batches: micro-batches of each data rank.
        sequence: mean length of a sequence in a micro-batch, which determines the cost of attention.
        scored: share of the positions with an output of the head.
        shared: the prompt that each sequence begins with; ``None`` if sequences share nothing.
    """

    per_micro_batch: int
    n_micro_batches: int = 1
    sequence: int = 4096
    scored: float = 1.0
    shared: SharedPrompt | None = None


@dataclass(frozen=True)
class Types:
    """Bytes per number.

    Attributes:
        compute: of unsharded weights and activations (bf16: 2).
        master: of the sharded weights that the optimizer updates (fp32: 4).
        reduce: of gradients while they are summed over ranks; sharded gradients have the bytes of ``master``.
    """

    compute: int = 2
    master: int = 4
    reduce: int = 4


@dataclass(frozen=True)
class Setting:
    """One training engine.

    Attributes:
        anatomy: of the model.
        dims: the sizes of the axes.
        tokens: of one step.
        types: bytes per number.
        stages: the pipeline's stages; a single one without a pipeline.
        schedule: ``None`` without a pipeline.
        actions: the schedule's lists, one per pipeline rank; empty without a pipeline.
        checkpointing: activation checkpointing as it takes effect: ``none`` where ``gradient_checkpointing`` is off.
        every: with ``selective``, recompute every Nth block as a whole; ``None`` keeps by operation.
        budget: with ``memory_budget``, the share of activations that is kept.
        optimizer: name of the optimizer, as in the configuration (``adamw``, ``adam``, ``sgd``, ``muon``).
        state_bytes: bytes of one number in the optimizer's state.
        momentum: whether SGD keeps a momentum.
        reshards: whether unsharded weights are freed between forward and backward.
        reshards_last: whether those of the last units are, too.
        reduces_each: with a pipeline, whether gradients are summed over data ranks after every micro-batch.
        offloads: whether parameters, gradients and optimizer states are in host memory.
        compiles: whether blocks are compiled.
        trains: whether the engine has gradients and an optimizer; a reference model has neither.
        entropy: whether the loss asks the head for entropies, beside log-probabilities.
        aux_loss: what the auxiliary loss of experts balances over (``actor.archon.moe_aux_loss``); ``none`` also where
            its coefficient is 0.
        z_loss: whether routers have a z-loss.
        cp_style: how context ranks share attention (``actor.archon.cp_style``).
        ranks_per_node: of a machine; ``None`` if all ranks count as neighbours.
        aligned_to: micro-batches are padded to a multiple of this many tokens (``actor.batch_align_to``).
    """

    anatomy: ModelAnatomy
    dims: ParallelDims
    tokens: Tokens
    types: Types = field(default_factory=Types)
    stages: StagePlan | None = None
    schedule: ScheduleSpec | None = None
    actions: RankActions = ()
    checkpointing: Checkpointing = "selective"
    every: int | None = None
    budget: float = 0.5
    optimizer: str = "adamw"
    state_bytes: int = 4
    momentum: bool = False
    reshards: bool = True
    reshards_last: bool = False
    reduces_each: bool = False
    offloads: bool = False
    compiles: bool = False
    trains: bool = True
    entropy: bool = False
    aux_loss: AuxiliaryLoss = "none"
    z_loss: bool = False
    cp_style: str = AUTO
    ranks_per_node: int | None = None
    aligned_to: int = 1

    @cached_property
    def stage_plan(self) -> StagePlan:
        """The stages; the whole model as one stage without a pipeline."""
        if self.stages is not None:
            return self.stages
        whole = Stage(tuple(range(len(self.anatomy.layers))), has_embed=True, has_head=True)
        return StagePlan((whole,), (0,))

    def held_by(self, pipeline_rank: int) -> tuple[Stage, ...]:
        """The stages on a pipeline rank, in the order of the forward pass."""
        plan = self.stage_plan
        return tuple(plan.stages[number] for number in plan.held_by(pipeline_rank))

    def checkpointing_of(self, layer: int) -> Checkpointing:
        """The mode of one layer; N of every Nth counts over the whole model."""
        if not self.trains:
            return "none"
        if self.checkpointing == "selective" and self.every is not None:
            return "full" if (layer + 1) % self.every == 0 else "none"
        return self.checkpointing

    def layers_of(self, stage: Stage) -> Counter[tuple[int, bool]]:
        """(kind of layer, whether backward recomputes it as a whole) -> number of such layers in a stage."""
        kinds = self.anatomy.kind_of
        if self.every is None:
            alike = self.trains and self.checkpointing == "full"
            return Counter([(kinds[layer], alike) for layer in stage.layers])
        return Counter((kinds[layer], self.checkpointing_of(layer) == "full") for layer in stage.layers)

    @cached_property
    def context(self) -> ContextSplit:
        """How context ranks share attention."""
        sizes = context_sizes(self.anatomy, self.dims, self.ranks_per_node)
        return split_context(self.cp_style, sizes, option="archon.cp_style")

    @property
    def token_multiple(self) -> int:
        """Micro-batches are padded to a multiple of this many tokens."""
        needed = token_multiple(self.anatomy, self.dims, self.cp_style, self.ranks_per_node)
        return math.lcm(self.aligned_to, needed)

    @property
    def local_tokens(self) -> int:
        """Tokens of a micro-batch on one rank between tensor regions: T / (t c), rounded up."""
        return -(-self.tokens.per_micro_batch // (self.dims.tp * self.dims.cp))

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP2 manages the weights. One rank that neither casts nor offloads them goes without."""
        return self.dims.world_size > 1 or self.types.compute != self.types.master or self.offloads

    @property
    def splits_backward(self) -> bool:
        """Whether the schedule has actions of split backward passes."""
        split = (ActionKind.BACKWARD_INPUT, ActionKind.BACKWARD_WEIGHT)
        return any(action.kind in split for rank in self.actions for action in rank)
