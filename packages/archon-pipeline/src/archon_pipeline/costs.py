"""Times of the actions of a schedule, with which ``simulate`` replays them."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.contracts.pipeline import ActionKind


@dataclass(frozen=True)
class StageCosts:
    """Times of one stage and one micro-batch, in any unit.

    Attributes:
        forward: a forward pass (F).
        backward_input: the gradient of the input alone (I; the papers on zero-bubble schedules call it B).
        backward_weight: the gradients of the weights alone (W).
        backward: a whole backward pass (B); ``None`` stands for the sum of both halves.
    """

    forward: float = 1.0
    backward_input: float = 1.0
    backward_weight: float = 1.0
    backward: float | None = None

    def of(self, kind: ActionKind) -> float:
        """The time of an action."""
        if kind is ActionKind.FORWARD:
            return self.forward
        if kind is ActionKind.BACKWARD_INPUT:
            return self.backward_input
        if kind is ActionKind.BACKWARD_WEIGHT:
            return self.backward_weight
        return self.backward_input + self.backward_weight if self.backward is None else self.backward


@dataclass(frozen=True)
class Costs:
    """Times of a whole pipeline.

    Attributes:
        stages: one entry per stage.
        message: from the end of an action until another rank has its result; no rank is busy with it.
    """

    stages: tuple[StageCosts, ...]
    message: float = 0.0

    @classmethod
    def alike(cls, n_stages: int, stage: StageCosts | None = None, *, message: float = 0.0) -> Costs:
        """Equal stages: ``stage`` if given, else one unit for F, I and W."""
        return cls((stage or StageCosts(),) * n_stages, message)
