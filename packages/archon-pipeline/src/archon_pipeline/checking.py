"""Checks that the action lists of a schedule can be executed, before a run starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from archon_core.contracts.pipeline import Action, ActionKind, RankActions
from archon_core.errors import PluginError
from archon_pipeline.simulator import simulate

_WHOLE = {ActionKind.FORWARD: 1, ActionKind.BACKWARD: 1}
_SPLIT = {ActionKind.FORWARD: 1, ActionKind.BACKWARD_INPUT: 1, ActionKind.BACKWARD_WEIGHT: 1}


def check_actions(
    actions: RankActions, rank_of: Sequence[int], n_micro_batches: int, *, schedule: str = "schedule"
) -> None:
    """Check action lists against what the runner requires.

    Args:
        actions: one list per rank.
        rank_of: for each stage, the rank that holds it.
        n_micro_batches: micro-batches of the step.
        schedule: name of the schedule, for messages.

    Raises:
        PluginError: the number of lists is not that of ranks; an action is on another rank than its stage, or names an
            unknown stage or micro-batch; a micro-batch does not pass a stage exactly once with F and then B, or I and
            W; or ranks would deadlock.
    """
    n_ranks = max(rank_of) + 1
    if len(actions) != n_ranks:
        raise PluginError(
            f"{schedule}: found actions of {len(actions)} ranks; allowed is one list for each of {n_ranks}; "
            "return one per rank"
        )
    for rank, own in enumerate(actions):
        for action in own:
            _check_place(action, rank, rank_of, n_micro_batches, schedule)
    _check_passes(actions, len(rank_of), n_micro_batches, schedule)
    try:
        simulate(actions, rank_of)
    except PluginError as error:
        raise PluginError(f"{schedule}: {error}") from None


def _check_place(action: Action, rank: int, rank_of: Sequence[int], n_micro_batches: int, schedule: str) -> None:
    if not 0 <= action.stage < len(rank_of):
        raise PluginError(
            f"{schedule}: found {action} on rank {rank}; allowed are stages 0 to {len(rank_of) - 1}; "
            "use the number of stages that the schedule is called with"
        )
    if not 0 <= action.micro_batch < n_micro_batches:
        raise PluginError(
            f"{schedule}: found {action} on rank {rank}; allowed are micro-batches 0 to {n_micro_batches - 1}; "
            "use the number of micro-batches that the schedule is called with"
        )
    if rank_of[action.stage] != rank:
        held = ", ".join(str(stage) for stage, holder in enumerate(rank_of) if holder == rank)
        raise PluginError(
            f"{schedule}: found {action} on rank {rank}; allowed there are stages {held}; move it to rank "
            f"{rank_of[action.stage]}, or correct the placement in the ScheduleSpec"
        )


def _check_passes(actions: RankActions, n_stages: int, n_micro_batches: int, schedule: str) -> None:
    """Check that every micro-batch passes every stage once."""
    kinds: dict[tuple[int, int], list[ActionKind]] = {}
    for own in actions:
        for action in own:
            kinds.setdefault((action.stage, action.micro_batch), []).append(action.kind)
    for stage in range(n_stages):
        for micro_batch in range(n_micro_batches):
            found = kinds.get((stage, micro_batch), [])
            counts = Counter(found)
            if counts not in (_WHOLE, _SPLIT):
                listed = " ".join(f"{stage}{kind.value}{micro_batch}" for kind in found) or "nothing"
                raise PluginError(
                    f"{schedule}: found {listed} for micro-batch {micro_batch} on stage {stage}; allowed is F "
                    "once, then B once, or I and W once each; add the missing actions and remove repeated ones"
                )
            if found[0] is not ActionKind.FORWARD:
                raise PluginError(
                    f"{schedule}: found {stage}{found[0].value}{micro_batch} before {stage}F{micro_batch}; allowed is "
                    "F first; move it back"
                )
            if ActionKind.BACKWARD_WEIGHT in found and found[-1] is not ActionKind.BACKWARD_WEIGHT:
                raise PluginError(
                    f"{schedule}: found {stage}W{micro_batch} before {stage}I{micro_batch}; allowed is I first; move "
                    "the W back"
                )
