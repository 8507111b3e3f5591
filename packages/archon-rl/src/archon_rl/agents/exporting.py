"""Trajectories of a session: one per call (``individual``), or one per conversation (``concat``).

Rewards go back along the order of the calls, as in AReaL: a call's return is its own reward plus ``turn_discount``
times the return of the call after it.

So a session with many calls has many trajectories. Metrics that compare agents need the mean over sessions: evaluations
export every session as one trajectory (``whole_session``), and training adds its facts to one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from archon_core.contracts.workflows import NO_VERSION, Trajectory
from archon_rl.agents.calls import Call, CallTree

REWARD, CALLS = "session_reward", "session_calls"
"""Facts about a session."""


def individual_trajectories(calls: Sequence[Call], discount: float) -> list[Trajectory]:
    """One trajectory per call, with its return as reward.

    Args:
        calls: in the order in which they began.
        discount: ``turn_discount``.
    """
    returns = discounted_returns([call.reward for call in calls], discount)
    return [_trajectory([call], reward) for call, reward in zip(calls, returns, strict=True)]


def concat_trajectories(tree: CallTree, discount: float) -> list[Trajectory]:
    """One trajectory per conversation, which trains on all of its answers.

    Its reward is the return of its last call, plus the rewards that the agent gave to the calls before.
    """
    ordered = tree.ordered()
    returns = dict(zip(map(id, ordered), discounted_returns([call.reward for call in ordered], discount), strict=True))
    trajectories = []
    for leaf in tree.leaves():
        path = leaf.path
        given = sum(call.reward or 0.0 for call in path[:-1])
        trajectories.append(_trajectory(path, returns[id(leaf)] + given))
    return trajectories


def whole_session(calls: Sequence[Call]) -> Trajectory:
    """A session as one trajectory, for evaluations: the conversation of its last call, with the session's reward.

    Args:
        calls: in the order in which they began.
    """
    found = _trajectory(calls[-1].path, session_reward(calls))
    return replace(found, metadata={**found.metadata, CALLS: len(calls)})


def with_session_facts(trajectories: Sequence[Trajectory], calls: Sequence[Call]) -> list[Trajectory]:
    """The trajectories of a session. The last one has its reward and its number of calls, so that means over all
    trajectories with these numbers are means over sessions."""
    *others, last = trajectories
    facts = {REWARD: session_reward(calls), CALLS: len(calls)}
    return [*others, replace(last, metadata={**last.metadata, **facts})]


def session_reward(calls: Sequence[Call]) -> float:
    """The reward of a session: the sum of the rewards that the agent gave, without a discount."""
    return sum(call.reward or 0.0 for call in calls)


def discounted_returns(rewards: Sequence[float | None], discount: float) -> list[float]:
    """The return of each call: ``R[k] = r[k] + discount * R[k + 1]``; a call without a reward has r = 0.

    >>> discounted_returns([None, 1.0, 2.0], 0.5)
    [1.0, 2.0, 2.0]
    """
    returns: list[float] = []
    after = 0.0
    for reward in reversed(rewards):
        after = (reward or 0.0) + discount * after
        returns.append(after)
    return returns[::-1]


def _trajectory(path: Sequence[Call], reward: float) -> Trajectory:
    """The tokens of a conversation's last call, with everything that was sampled on the path marked."""
    last = path[-1]
    token_ids = last.token_ids
    mask, logprobs, versions = [False] * len(token_ids), [0.0] * len(token_ids), [NO_VERSION] * len(token_ids)
    for call in path:
        start, end = len(call.prompt_ids), len(call.token_ids)
        assert token_ids[:end] == call.token_ids, "a prompt starts with the tokens of its parent"
        mask[start:end] = [True] * (end - start)
        logprobs[start:end] = call.completion.logprobs
        versions[start:end] = call.completion.versions
    return Trajectory(
        token_ids,
        tuple(mask),
        tuple(logprobs),
        tuple(versions),
        reward,
        last.completion.stop_reason == "length",
        _routed_experts(path),
        {"calls": [call.id for call in path]},
    )


def _routed_experts(path: Sequence[Call]) -> Any:
    """The experts of every token when a call processed it first; ``None`` if a call has none."""
    if any(call.completion.routed_experts is None for call in path):
        return None
    experts = path[-1].completion.routed_experts
    if len(path) == 1:
        return experts
    experts = experts.clone()
    for call in reversed(path[:-1]):
        rows = call.completion.routed_experts
        experts[: len(rows)] = rows
    return experts
