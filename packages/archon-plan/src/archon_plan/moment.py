"""A moment of a step, with the memory of weights, gradients and buffers that live then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activations = Literal["head", "block", "any", "kept"]
"""The activations at a moment: while the head, or the block that needs most, runs backward; the most at any time; or
only what blocks keep for their backward passes."""


@dataclass(frozen=True)
class Moment:
    """One moment of a step on one rank, in bytes.

    Attributes:
        name: of the moment.
        activations: which of them live.
        gradients: sharded gradients.
        accumulated: unsharded gradients of the micro-batches so far, in a pipeline.
        weights: unsharded weights, and buffers of all-gathers.
        reductions: unsharded gradients of the running backward pass, and inputs of reduce-scatters.
        buffers: of the optimizer's update.
        published: buckets in which weights are published.
        kept: the share of what blocks keep that still lives.
        running: unsharded gradients of the running head or block, which ``archon_plan.activations`` counts.
    """

    name: str
    activations: Activations
    gradients: float = 0
    accumulated: float = 0
    weights: float = 0
    reductions: float = 0
    buffers: float = 0
    published: float = 0
    kept: float = 1.0
    running: float = 0.0

    @property
    def total(self) -> float:
        """All of it, except activations and ``running``."""
        parts = (self.gradients, self.accumulated, self.weights, self.reductions, self.buffers, self.published)
        return sum(parts)
