"""From the groups that workflows have settled to the batch and the metrics of a step or an evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from archon_core.contracts.batch import Batch
from archon_core.errors import RewardError
from archon_rl.algorithm import Algorithm
from archon_rl.collector.group import Group
from archon_rl.collector.sampling import WORKFLOW_FAILED, dropped_counts
from archon_rl.collector.window import Settled
from archon_rl.rewards.calls import Outcome
from archon_rl.trainer.collecting import Sampled, shaped_batch
from archon_rl.trainer.failures import FailureJudge, explain_no_group
from archon_rl.trainer.scoring import FAILED, TIMED_OUT

FACTS = "workflow/"
"""Prefix of the means of the numbers that workflows give with their trajectories."""


def judge_groups(
    judge: FailureJudge, settled: Collection[Settled[Group]], when: str, *, has_rewards: bool
) -> dict[str, float]:
    """Explain what failed, and count it.

    Args:
        judge: keeps count over the run. A failed workflow counts as one failed call.
        settled: the groups of a step or an evaluation, at least one.
        when: what they are for, such as ``Step 3``; for messages.
        has_rewards: whether the run has a reward.

    Raises:
        RewardError: too many failures; or one in every group, which leaves none to train on.
    """
    failures = [outcome for one in settled for outcome in one.group.failures]
    n_errors = sum(one.reason == WORKFLOW_FAILED for one in settled)
    # A workflow may give rewards without calls of the reward function.
    n_calls = n_errors + sum(one.group.n_calls or len(one.group.rewards) for one in settled)
    judge([*failures, *[Outcome(0.0)] * (n_calls - len(failures))], when)
    if all(one.group.failures for one in settled):
        raise RewardError(explain_no_group(len(settled), failures[0]))
    counts = dropped_counts(settled)
    if has_rewards:
        counts |= {FAILED: len(failures) - n_errors, TIMED_OUT: sum(one.timed_out for one in failures)}
    return counts


def sampled_by(settled: Collection[Settled[Group]]) -> Sampled:
    """Facts about all completions, selected or not."""
    sampled = Sampled()
    for group in (one.group for one in settled):
        sampled.add(group.rewards, group.lengths, group.truncated, n_tokens=group.n_tokens)
    return sampled


def mean_facts(settled: Collection[Settled[Group]]) -> dict[str, float]:
    """Means over all trajectories that have a number of the name."""
    values = defaultdict[str, list[float]](list)
    for one in settled:
        for facts in one.group.facts:
            for name, value in facts.items():
                values[name].append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def mean_seconds(settled: Collection[Settled[Group]]) -> dict[str, float]:
    """Mean durations of a group: of its workflow without rewards, and of its rewards. Groups run beside one another."""
    found = defaultdict[str, list[float]](list)
    for one in settled:
        for name, seconds in one.group.seconds.items():
            found[name].append(seconds)
    return {f"collector/{name}_seconds": sum(values) / len(values) for name, values in found.items()}


def batch_of(algorithm: Algorithm, groups: Sequence[Group], *, needs_experts: bool) -> Batch:
    """The batch to train on."""
    rewards = [reward for group in groups for reward in group.rewards]
    trajectories = {place: group.trajectories for place, group in enumerate(groups)}
    return shaped_batch(algorithm, trajectories, rewards, needs_experts=needs_experts)
