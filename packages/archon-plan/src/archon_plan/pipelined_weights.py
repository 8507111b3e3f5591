"""How often a pipeline stage gathers weights and reduces gradients, by following its actions.

Where weights are freed after each pass (``reshard_after_forward_policy: always``), a pass gathers each group once:
the backward pass of a unit prefetches the unit before it (``archon_engine.parallel.fsdp``).
"""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.contracts.pipeline import Action, ActionKind
from archon_plan.setting import Setting


@dataclass(frozen=True)
class StageActions:
    """The actions of one stage, in order.

    Attributes:
        actions: only those of this stage.
        is_first: whether it is the first stage, which leaves all work of a split backward pass to its second half.
        is_last: whether it is the last stage, which does all work in the first half.
    """

    actions: tuple[Action, ...]
    is_first: bool
    is_last: bool

    @classmethod
    def of(cls, setting: Setting, stage: int) -> StageActions:
        """The actions of stage ``stage`` of the model."""
        plan = setting.stage_plan
        own = setting.actions[plan.rank_of[stage]]
        actions = tuple(action for action in own if action.stage == stage)
        return cls(actions, is_first=stage == 0, is_last=stage == len(plan) - 1)

    def runs_backward(self, action: Action) -> bool:
        """Whether the gradients of the stage's activations are computed in ``action``."""
        half = ActionKind.BACKWARD_WEIGHT if self.is_first else ActionKind.BACKWARD_INPUT
        return action.kind in (ActionKind.BACKWARD, half)

    def gives_gradients(self, action: Action) -> bool:
        """Whether gradients of weights are computed in ``action``."""
        half = ActionKind.BACKWARD_INPUT if self.is_last else ActionKind.BACKWARD_WEIGHT
        return action.kind in (ActionKind.BACKWARD, half)


def count_reductions(stage: StageActions) -> int:
    """How often gradients are reduced if that follows every end of a backward pass.

    The last stage may have computed the gradients of a later micro-batch by then; nothing is left to reduce after it.
    """
    number, has_gradients = 0, False
    for action in stage.actions:
        has_gradients = has_gradients or stage.gives_gradients(action)
        if _ends(action):
            number += has_gradients
            has_gradients = False
    return number


@dataclass(frozen=True)
class Gathers:
    """How often each group of a stage is gathered in a step.

    Attributes:
        unit: a unit around the blocks, or a block that is not recomputed.
        recomputed: a block that is recomputed.
        experts: experts of a block.
    """

    unit: int
    recomputed: int
    experts: int


def count_gathers(stage: StageActions) -> Gathers:
    """Count the gathers of a stage whose passes free weights.

    The second half of a split backward pass needs the weights again: to recompute a block, and for the experts'
    operation, which computes the gradient behind their last matrix in both halves.
    """
    forward = sum(action.kind is ActionKind.FORWARD for action in stage.actions)
    backward = sum(map(stage.runs_backward, stage.actions))
    second = sum(stage.gives_gradients(action) and not stage.runs_backward(action) for action in stage.actions)
    return Gathers(forward + backward, forward + backward + second, forward + backward + second)


def _ends(action: Action) -> bool:
    return action.kind in (ActionKind.BACKWARD, ActionKind.BACKWARD_WEIGHT)
