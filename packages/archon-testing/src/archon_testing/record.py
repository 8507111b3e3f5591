"""The record of a training run on one rank: losses, norms, outputs, and this rank's shards of gradients and weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from archon_testing.held_shards import HeldShard
from archon_testing.losses import Counted


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        loss: ``loss``, ``learning rate``, and the loss's metrics.
        gradient_norm: before clipping.
        gradients: parameter -> gradient before clipping.
        weights: parameter -> weight after the step.
        state: parameter and entry, such as ``norm.weight exp_avg`` -> optimizer state after the step; recorded only in
            references and resumed runs.
        counted: targets that the loss saw on this rank.
        targets: targets of this rank's share of the batch.
    """

    loss: Mapping[str, float]
    gradient_norm: float
    gradients: Mapping[str, HeldShard]
    weights: Mapping[str, HeldShard]
    state: Mapping[str, HeldShard] = field(default_factory=dict)
    counted: Counted = field(default_factory=Counted)
    targets: float = 0.0


@dataclass(frozen=True)
class Record:
    """The record of a case on one rank.

    Attributes:
        steps: one per batch; for a resumed run, the steps after resuming.
        outputs: name and time, such as ``logprobs after training`` -> values of ``tokens``.
        initial: parameter -> initial weight without a checkpoint, or with one that lacks optional weights.
        start: parameter -> weight before the first step.
        tokens: [T] indices of this rank's tokens in the whole first batch; ``None`` for all.
        exported: Hugging Face name -> error of the exported tensor against this rank's shard.
        data_rank: the data rank, which determines the share of the batch.
        loaded: parameter -> weight after loading, in the engine that resumes.
        loaded_state: the same for the optimizer's state.
        problems: errors that need no reference, such as a gradient that is still a partial sum.
        copies: parameters that are copies for a tie between stages -> name of the original.
        pipelined: whether other ranks hold other parameters.
        comparable: whether values can be compared with one process. False for bfloat16 with experts: rounding changes
            the routing.
        first_step: number of the first of ``steps``, from 1.
    """

    steps: tuple[StepRecord, ...] = ()
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    initial: Mapping[str, HeldShard] = field(default_factory=dict)
    start: Mapping[str, HeldShard] = field(default_factory=dict)
    tokens: Tensor | None = None
    exported: Mapping[str, float] = field(default_factory=dict)
    data_rank: int = 0
    loaded: Mapping[str, HeldShard] = field(default_factory=dict)
    loaded_state: Mapping[str, HeldShard] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    pipelined: bool = False
    comparable: bool = True
    first_step: int = 1

    @property
    def names(self) -> frozenset[str]:
        """The recorded parameters."""
        first = self.steps[0].weights if self.steps else self.initial
        return frozenset(first)

    def with_copies(self, copies: Mapping[str, str]) -> Record:
        """This record of one process with copies of tied weights, as pipeline stages hold them."""

        def both(shards: Mapping[str, HeldShard]) -> dict[str, HeldShard]:
            return {**shards, **{copy: shards[name] for copy, name in copies.items() if name in shards}}

        steps = [replace(step, gradients=both(step.gradients), weights=both(step.weights)) for step in self.steps]
        return replace(self, steps=tuple(steps), initial=both(self.initial), start=both(self.start))

    def paired_steps(self, other: Record) -> Iterator[tuple[int, StepRecord, StepRecord]]:
        """(number, own step, step of ``other``) for every step that both have."""
        for number, step in enumerate(self.steps, start=self.first_step):
            if number - other.first_step < len(other.steps):
                yield number, step, other.steps[number - other.first_step]
