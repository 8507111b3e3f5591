"""How long the actions of a schedule take: what ``simulate`` replays them with."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.contracts.pipeline import ActionKind


@dataclass(frozen=True)
class StageCosts:
    """Times of one stage and one micro-batch, in any unit.

    Attributes:
        forward: of a forward pass.
        backward_input: of the gradient of the input alone: B in the papers on zero-bubble schedules.
        backward_weight: of the gradients of the weights alone.
        backward: of a whole backward pass; ``None``: that of both halves together.
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
        stages: of each stage.
        message: from the end of an action to when another rank has its result. Ranks do not work less meanwhile.
    """

    stages: tuple[StageCosts, ...]
    message: float = 0.0

    @classmethod
    def alike(cls, n_stages: int, stage: StageCosts | None = None, *, message: float = 0.0) -> Costs:
        """Every stage takes the same: one unit for forward and for each half of backward, unless ``stage`` is given."""
        return cls((stage or StageCosts(),) * n_stages, message)
