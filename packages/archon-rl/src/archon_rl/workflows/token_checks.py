"""Checks of every token of a trajectory (``rollout.check_trajectory_format``), for authors of workflows."""

from __future__ import annotations

import json
import math

from archon_core.contracts.workflows import NO_VERSION, Trajectory
from archon_rl.workflows.checking import refused

LARGEST_LOGPROB = 1e-5
"""Rounding may lift the log-probability of a certain token above 0."""


def check_tokens(workflow: str, one: Trajectory) -> None:
    """Check every token of a trajectory, and that the numbers of its metadata are finite.

    Args:
        workflow: its name, for messages.
        one: a trajectory that ``checked_trajectories`` has accepted.

    Raises:
        TrainingError: the values of a token contradict each other, or cannot come from a model.
    """
    if one.loss_mask[0]:
        raise refused(workflow, "a loss_mask that marks the first token", "allowed are tokens that follow another")
    before = NO_VERSION
    for place, (token, sampled, logprob, version) in enumerate(
        zip(one.token_ids, one.loss_mask, one.logprobs, one.versions, strict=True)
    ):
        where = f"at token {place}"
        if not isinstance(token, int) or token < 0:
            raise refused(workflow, f"the token id {token!r} {where}", "allowed are ids of 0 or more")
        if not sampled:
            if logprob != 0 or version != NO_VERSION:
                found = f"log-probability {logprob!r} and version {version!r} {where}, which the loss_mask leaves out"
                raise refused(workflow, found, f"allowed are 0 and {NO_VERSION}")
            before = NO_VERSION
            continue
        if not math.isfinite(logprob) or logprob > LARGEST_LOGPROB:
            raise refused(workflow, f"the log-probability {logprob!r} {where}", "allowed are numbers of at most 0")
        if version < max(before, 0):
            found = f"version {version!r} {where}" + (f" after version {before}" if before >= 0 else "")
            raise refused(workflow, found, "allowed are versions of 0 or more that never go back in a completion")
        before = version
    try:
        json.dumps(dict(one.metadata), allow_nan=False)
    except ValueError as error:
        raise refused(workflow, f"metadata with a number that is not finite ({error})", "allowed are others") from error
