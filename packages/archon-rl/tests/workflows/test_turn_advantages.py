"""Advantages of a conversation with two sampled turns, with numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from archon_core.contracts.workflows import NO_VERSION, Trajectory
from archon_rl.advantages import ConstantLambda, GroupAdvantages, Normalisation, ValueAdvantages
from archon_rl.losses.aggregation import LOSS_MASK
from archon_rl.losses.value import VALUES
from archon_rl.trainer.rollout_batch import build_batch

# Prompt (2 tokens), answer (2), feedback (1), answer (3). Position t of a batch predicts token t + 1.
MASK = (False, False, True, True, False, True, True, True)
TRAINED = [1, 2, 4, 5, 6]


def conversation(reward):
    n = len(MASK)
    return Trajectory(
        tuple(range(n)), MASK, (-0.5,) * n, tuple(0 if one else NO_VERSION for one in MASK), reward=reward
    )


def single(reward):
    """A prompt with an answer of one token."""
    return Trajectory((0, 1), (False, True), (0.0, -0.5), (NO_VERSION, 0), reward=reward)


def batch_of(groups):
    rewards = [one.reward for group in groups.values() for one in group]
    return build_batch(groups, torch.tensor(rewards, dtype=torch.float64))


def test_the_mask_of_predictions_covers_the_sampled_turns():
    batch = batch_of({0: [conversation(1.0)]})
    assert batch.token_fields[LOSS_MASK].nonzero()[:, 0].tolist() == TRAINED


def test_turns_are_the_steps_of_turn_level_gae():
    """gamma = 0.9, lambda = 0.5; values 0.2 and 0.6 at the first token of each turn; reward 1 after the second.

    delta_2 = 1 - 0.6 = 0.4;  delta_1 = 0 + 0.9 * 0.6 - 0.2 = 0.34;  A_2 = 0.4;  A_1 = 0.34 + 0.9 * 0.5 * 0.4 = 0.52.
    """
    batch = batch_of({0: [conversation(1.0)]})
    values = torch.full((8,), 9.0, dtype=torch.float64)  # only the first token of a turn counts
    values[1], values[4] = 0.2, 0.6
    batch = batch.with_fields({VALUES: values})
    estimator = ValueAdvantages(discount=0.9, gae_lambda=ConstantLambda(0.5), unit="turn")
    advantages, returns = estimator.with_returns(batch)
    expected = [0, 0.52, 0.52, 0, 0.4, 0.4, 0.4, 0]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-12)
    assert returns.tolist() == pytest.approx([0, 0.72, 0.72, 0, 1.0, 1.0, 1.0, 0], abs=1e-12)


def test_tokens_are_the_steps_of_token_level_gae_and_feedback_is_none():
    """gamma = 0.5 without values: the reward 8 is discounted once per later sampled token, feedback excluded."""
    batch = batch_of({0: [conversation(8.0)]})
    advantages = GroupAdvantages(discount=0.5)(batch)
    assert advantages.tolist() == pytest.approx([0, 0.5, 1.0, 0, 2.0, 4.0, 8.0, 0], abs=1e-12)


def test_rewards_are_compared_within_groups_of_unequal_numbers_of_trajectories():
    """Group 0 has three trajectories, group 1 has two. Each reward loses the mean reward of its group."""
    groups = {0: [single(0.0), conversation(3.0), single(0.0)], 1: [single(4.0), single(1.0)]}
    norm = Normalisation(mean_level="group", std_level=None)
    advantages = GroupAdvantages(reward_norm=norm)(batch_of(groups))
    expected = [-1.0, 0.0, 0.0, 2.0, 2.0, 0.0, 2.0, 2.0, 2.0, 0.0, -1.0, 0.0, 1.5, 0.0, -1.5, 0.0]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-12)


def test_leaving_one_out_takes_the_mean_of_the_others_of_the_group():
    groups = {0: [single(0.0), single(3.0), single(6.0)], 1: [single(4.0), single(1.0)], 2: [single(5.0)]}
    norm = Normalisation(mean_level="group", leave_one_out=True, std_level=None)
    advantages = GroupAdvantages(reward_norm=norm)(batch_of(groups))
    # The only trajectory of a group has nothing to be compared with: its baseline is 0.
    assert advantages[::2].tolist() == pytest.approx([-4.5, 0.0, 4.5, 3.0, -3.0, 5.0], abs=1e-12)
