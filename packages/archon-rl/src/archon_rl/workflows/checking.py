"""Checks of what a workflow returned, with messages for its author."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgpack

from archon_core.contracts.workflows import Trajectory
from archon_core.errors import TrainingError

PER_TOKEN = ("token_ids", "loss_mask", "logprobs", "versions")
ALLOWED = "allowed is a list of Trajectory, or None to leave the record out"


def checked_trajectories(workflow: str, found: Any, n_sampled: int) -> tuple[Trajectory, ...] | None:
    """The trajectories of one record; ``None`` if the workflow left it out.

    Rewards become Python's ``float``, ``truncated`` becomes ``bool``: messages and files hold no others.

    Args:
        workflow: its name, for messages.
        found: what it returned.
        n_sampled: number of tokens that it got from the client.

    Raises:
        TrainingError: anything else, or trajectories that no step can train on.
    """
    if found is None:
        return None
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise refused(workflow, f"a value of type {type(found).__name__}", ALLOWED)
    if not found:
        raise refused(workflow, "an empty list", ALLOWED)
    for place, one in enumerate(found):
        if not isinstance(one, Trajectory):
            raise refused(workflow, f"a list with a value of type {type(one).__name__} at place {place}", ALLOWED)
        _check(workflow, one)
        _check_metadata(workflow, one)
    if n_sampled and not any(one.n_sampled for one in found):
        raise refused(workflow, "trajectories without a sampled token", "allowed is a loss_mask that marks them")
    return tuple(replace(one, reward=float(one.reward), truncated=bool(one.truncated)) for one in found)


def _check(workflow: str, one: Trajectory) -> None:
    lengths = {name: len(getattr(one, name)) for name in PER_TOKEN}
    if len(set(lengths.values())) > 1 or not one.token_ids:
        found = ", ".join(f"{n} {name}" for name, n in lengths.items())
        raise refused(workflow, f"a trajectory with {found}", "allowed is one entry per token in each, at least one")
    reward = one.reward
    if not isinstance(reward, numbers.Real) or not math.isfinite(reward):
        raise refused(workflow, f"a trajectory with the reward {reward!r}", "allowed is a finite number")
    experts = one.routed_experts
    if experts is not None and len(experts) >= len(one.token_ids):
        found = f"routed_experts of {len(experts)} tokens in a trajectory of {len(one.token_ids)} tokens"
        raise refused(workflow, found, "allowed are all tokens except the last")


def _check_metadata(workflow: str, one: Trajectory) -> None:
    """Files hold metadata as JSON, messages of the collector as msgpack."""
    try:
        metadata = dict(one.metadata)
        json.dumps(metadata)
        msgpack.packb(metadata)
    except (TypeError, ValueError, OverflowError, RecursionError, msgpack.PackException) as error:
        found = f"a trajectory with metadata that no file can hold ({error})"
        raise refused(workflow, found, "allowed are values of JSON, with integers of 64 bits") from error


def refused(workflow: str, found: str, allowed: str) -> TrainingError:
    """The error about what a workflow returned."""
    return TrainingError(f"workflow {workflow!r}: found {found}; {allowed}; correct the workflow")
