"""How often a pipeline stage gathers weights and reduces gradients, by following its actions.

In a pipeline, forward passes of later micro-batches run before backward passes of earlier ones. Where weights are
freed after each pass (``reshard_after_forward_policy: always``), FSDP2's prefetching then depends on the order: in
backward a group gathers the one before it in the record of forward passes, which may be of another micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def count_gathers(
    stage: StageActions, blocks: Sequence[bool], *, early: bool, last: bool, reduces_each: bool
) -> list[int]:
    """How often each group is gathered if every pass frees weights: for the groups in the order of ``group_order``.

    Args:
        stage: the actions.
        blocks: for each block, whether it has experts, which are a group inside it.
        early: whether there is a unit before the blocks.
        last: whether there are units after them.
        reduces_each: whether gradients are reduced after every backward pass, which ends the record of forward passes.
    """
    order = group_order(blocks, early=early, last=last)
    backward = [
        event for number, has_experts in reversed([*enumerate(blocks)]) for event in _events(number, has_experts)
    ]
    backward = [*(_unit("last") if last else ()), *backward, *(_unit("early") if early else ())]
    # Torch goes through the experts' operation once more for the gradients of their weights, and FSDP2 takes that for
    # another backward pass of the experts. Other weights' gradients depend on activations alone.
    again = [event for number, has in enumerate(blocks) for group in _experts(number, has) for event in _unit(group)]
    record = _Record(order)
    for action in stage.actions:
        if action.kind is ActionKind.FORWARD:
            record.forward()
        elif stage.runs_backward(action):
            record.backward(backward)
        elif stage.gives_gradients(action):
            record.backward(again)
        if reduces_each and _ends(action):
            record.end()
    return [record.gathers[group] for group in order]


def group_order(blocks: Sequence[bool], *, early: bool, last: bool) -> list[str]:
    """The groups of a stage in the order in which forward passes end: ``early``, ``experts0``, ``block0``, ``last``."""
    inner = [name for number, has in enumerate(blocks) for name in (*_experts(number, has), f"block{number}")]
    return [*(["early"] if early else []), *inner, *(["last"] if last else [])]


def _ends(action: Action) -> bool:
    return action.kind in (ActionKind.BACKWARD, ActionKind.BACKWARD_WEIGHT)


def _experts(number: int, has_experts: bool) -> list[str]:
    return [f"experts{number}"] if has_experts else []


Event = tuple[str, bool]
"""A group, and whether its backward pass begins; otherwise it ends and the group is freed."""


def _unit(group: str) -> list[Event]:
    return [(group, True), (group, False)]


def _events(number: int, has_experts: bool) -> list[Event]:
    inner = [event for group in _experts(number, has_experts) for event in _unit(group)]
    return [(f"block{number}", True), *inner, (f"block{number}", False)]


class _Record:
    """FSDP2's record of forward passes (``post_forward_order``), and which groups are gathered."""

    def __init__(self, order: Sequence[str]) -> None:
        self._order = order
        self.gathers = dict.fromkeys(order, 0)
        self.end()

    def forward(self) -> None:
        for group in self._order:
            self._gather(group)
            self._whole.discard(group)
            self._places[group].append(len(self._passes))
            self._passes.append(group)

    def backward(self, events: Iterable[Event]) -> None:
        for group, begins in events:
            if not begins:
                self._whole.discard(group)
                continue
            self._gather(group)
            if self._places[group]:
                place = self._places[group].pop()
                if place > 0:
                    self._gather(self._passes[place - 1])

    def end(self) -> None:
        self._whole: set[str] = set()
        self._passes: list[str] = []
        self._places: dict[str, list[int]] = {group: [] for group in self._order}

    def _gather(self, group: str) -> None:
        if group not in self._whole:
            self._whole.add(group)
            self.gathers[group] += 1
