"""Advantages against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archon_core.contracts.batch import Batch
from archon_rl.advantages import (
    ConstantLambda,
    GroupAdvantages,
    LengthAdaptiveLambda,
    Normalisation,
    RelativePositionLambda,
    ValueAdvantages,
    generalised_advantages,
    normalise,
    rewards_at_last_token,
)
from archon_rl.reward_shaping import OverlongPenalty, RewardShaping

GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])
VALUES = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0], dtype=torch.float64)


def sequences(masks: list[list[int]], rewards: list[float], groups: list[int], **token_fields: list[float]) -> Batch:
    """A batch with the loss masks given, token by token."""
    lengths = tuple(len(mask) for mask in masks)
    fields = {name: torch.tensor(values, dtype=torch.float64) for name, values in token_fields.items()}
    return Batch(
        input_ids=torch.zeros(sum(lengths), dtype=torch.int64),
        lengths=lengths,
        token_fields={"loss_mask": torch.tensor([bool(m) for mask in masks for m in mask]), **fields},
        sequence_fields={"rewards": torch.tensor(rewards, dtype=torch.float64), "group": torch.tensor(groups)},
    )


def test_group_mean_and_deviation_are_those_of_each_group():
    how = Normalisation(mean_level="group", std_level="group", eps=0.0)
    # Group 0: mean 3, squared deviations 4 + 1 + 9 = 14 over 2. Group 1: mean 1, 1 + 1 + 4 = 6 over 2.
    a, b = math.sqrt(7), math.sqrt(3)
    expected = [-2 / a, -1 / a, 3 / a, -1 / b, -1 / b, 2 / b]
    torch.testing.assert_close(normalise(VALUES, GROUPS, how), torch.tensor(expected, dtype=torch.float64))


def test_batch_mean_and_biased_deviation_are_those_of_all_values():
    how = Normalisation(unbiased=False, eps=0.0)
    # Mean 2, squared deviations 1 + 0 + 16 + 4 + 4 + 1 = 26 over 6.
    expected = (VALUES - 2) / math.sqrt(26 / 6)
    torch.testing.assert_close(normalise(VALUES, GROUPS, how), expected)


def test_a_group_mean_and_a_batch_deviation_combine():
    how = Normalisation(mean_level="group", std_level="batch", eps=0.5)
    expected = (VALUES - torch.tensor([3.0, 3, 3, 1, 1, 1])) / (math.sqrt(26 / 5) + 0.5)
    torch.testing.assert_close(normalise(VALUES, GROUPS, how), expected)


def test_leave_one_out_compares_each_value_with_the_mean_of_the_others():
    how = Normalisation(mean_level="group", std_level=None, leave_one_out=True)
    expected = torch.tensor([1 - 4, 2 - 3.5, 6 - 1.5, 0 - 1.5, 0 - 1.5, 3 - 0], dtype=torch.float64)
    torch.testing.assert_close(normalise(VALUES, GROUPS, how), expected)


def test_values_outside_the_mask_do_not_count():
    mask = torch.tensor([True, True, False, True, False, True])
    how = Normalisation(mean_level="group", std_level=None)
    expected = torch.tensor([-0.5, 0.5, 0.0, -1.5, 0.0, 1.5], dtype=torch.float64)
    torch.testing.assert_close(normalise(VALUES, GROUPS, how, mask), expected)


def test_a_group_whose_rewards_are_equal_has_no_advantage():
    how = Normalisation(mean_level="group", std_level="group")
    values = torch.tensor([0.1] * 6, dtype=torch.float32)
    assert normalise(values, GROUPS, how).abs().max() < 1e-6


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(("mean_level", "mean"), [("batch", 2.0), (None, 0.0), ("group", 5.0)])
def test_a_single_value_is_not_scaled(mean_level, mean, unbiased):
    # Groups of two and of one; the mean of all is 2.
    values = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    how = Normalisation(mean_level, "group", unbiased=unbiased, eps=0.0)
    assert float(normalise(values, torch.tensor([0, 0, 1]), how)[2]) == pytest.approx(5 - mean)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8), st.integers(1, 3))
def test_group_normalised_values_sum_to_zero_in_every_group(rewards, n_groups):
    values = torch.tensor(rewards * n_groups, dtype=torch.float64)
    groups = torch.arange(n_groups).repeat_interleave(len(rewards))
    result = normalise(values, groups, Normalisation(mean_level="group", std_level="group"))
    torch.testing.assert_close(
        result.view(n_groups, -1).sum(1), torch.zeros(n_groups, dtype=torch.float64), atol=1e-8, rtol=0
    )


def test_no_level_at_all_changes_nothing():
    torch.testing.assert_close(normalise(VALUES, GROUPS, Normalisation(None, None)), VALUES)


def test_a_sequence_without_reward_counts_in_the_statistics_and_keeps_its_kl_penalty():
    """AReaL's ``mask_no_eos_with_zero``, whose zero replaces the normalised reward of a truncated completion."""
    masks, rewards = [[1, 1, 0], [1, 0], [1, 0]], [3.0, 1.0, 2.0]
    sampled, reference = [-1.0, -1.0, 0, -1.0, 0, -1.0, 0], [-3.0, -1.0, 0, -1.0, 0, -1.0, 0]
    batch = sequences(masks, rewards, [0, 0, 0], logprobs=sampled, ref_logprobs=reference)
    batch.sequence_fields["truncated"] = torch.tensor([True, False, False])
    norm = Normalisation("group", "group", eps=0.0)  # mean 2 and deviation 1, with the reward 3 of the first: 1, -1, 0
    whole = GroupAdvantages(norm, kl_ctl=0.5)(batch)
    zeroed = GroupAdvantages(norm, kl_ctl=0.5, without_reward="truncated")(batch)
    # The first token pays 0.5 (-1 + 3) = 1.
    torch.testing.assert_close(whole, torch.tensor([0, 1, 0, -1, 0, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(zeroed, torch.tensor([-1, 0, 0, -1, 0, 0, 0], dtype=torch.float64))


def test_returns_of_a_sequence_without_reward_are_zero():
    batch = sequences([[1, 1, 0], [1, 0]], [3.0, 1.0], [0, 0], values=[0.5, 0.25, 0, 0.5, 0])
    batch.sequence_fields["truncated"] = torch.tensor([True, False])
    advantages, returns = ValueAdvantages(without_reward="truncated").with_returns(batch)
    torch.testing.assert_close(returns, torch.tensor([0, 0, 0, 1, 0], dtype=torch.float64))
    torch.testing.assert_close(advantages, torch.tensor([-0.5, -0.25, 0, 0.5, 0], dtype=torch.float64))


def test_rewards_are_summed_inside_their_sequence_with_discount_times_lambda():
    batch = sequences([[1, 1, 1], [1, 1]], [0.0, 0.0], [0, 0])
    rewards = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    expected = torch.tensor([1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4.0, 8 + 0.5 * 16, 16.0])
    advantages, returns = generalised_advantages(batch, rewards, discount=0.625, gae_lambda=ConstantLambda(0.8))
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected)


def test_a_reward_stands_at_the_last_trained_prediction():
    batch = sequences([[0, 1, 1, 0], [0, 0], [1, 0, 0]], [5.0, 6.0, 7.0], [0, 0, 0])
    expected = torch.tensor([0, 0, 5.0, 0, 0, 0, 7.0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(rewards_at_last_token(batch, batch.sequence_fields["rewards"]), expected)


def test_grpo_gives_every_token_of_a_completion_its_groups_normalised_reward():
    batch = sequences([[0, 1, 1, 0], [0, 1, 0], [1, 0], [1, 1, 0]], [1.0, 0.0, 3.0, 1.0], [0, 0, 1, 1])
    estimator = GroupAdvantages(reward_norm=Normalisation("group", None))
    expected = torch.tensor([0, 0.5, 0.5, 0, 0, -0.5, 0, 1, 0, -1, -1, 0], dtype=torch.float64)
    torch.testing.assert_close(estimator(batch), expected)


def test_every_token_pays_for_its_own_and_all_later_kl():
    batch = sequences([[0, 1, 1, 0]], [1.0], [0], logprobs=[9.0, -1.0, -2.0, 9.0], ref_logprobs=[0.0, -1.5, -1.0, 0.0])
    # k1: +0.5 at the first trained token, -1 at the second; each is subtracted at 0.1.
    second = 1.0 + 0.1
    expected = torch.tensor([0.0, -0.05 + second, second, 0.0], dtype=torch.float64)
    estimator = GroupAdvantages(kl_ctl=0.1)
    torch.testing.assert_close(estimator(batch), expected)
    assert estimator.fields == {"loss_mask", "logprobs", "ref_logprobs"}


def test_advantage_normalisation_is_over_trained_tokens():
    batch = sequences([[1, 1, 1, 0], [1, 0]], [1.0, -1.0], [0, 0])
    # Three tokens with 1, one with -1: mean 0.5.
    expected = torch.tensor([0.5, 0.5, 0.5, 0.0, -1.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(GroupAdvantages(adv_norm=Normalisation("batch", None))(batch), expected)


def test_rewards_are_biased_then_scaled_then_clipped():
    shaping = RewardShaping(scaling=10.0, bias=-0.5, clip=4.0)
    result = shaping(torch.tensor([1.0, 0.0, 0.7]), torch.tensor([3, 3, 3]))
    torch.testing.assert_close(result, torch.tensor([4.0, -4.0, 2.0]))


@pytest.mark.parametrize("factor", [1.0, 0.5])
@pytest.mark.parametrize(
    ("length", "penalty"),
    [(1, 0.0), (5, 0.0), (6, 0.0), (7, -0.25), (8, -0.5), (9, -0.75), (10, -1.0), (11, -1.0), (14, -1.0), (1000, -1.0)],
)
def test_the_overlong_penalty_is_the_papers_zero_then_linear_then_minus_one(length, penalty, factor):
    # DAPO's eq. 13 with L_max = 10 and L_cache = 4, by hand: (10 - 4 - length) / 4 between 6 and 10.
    overlong = OverlongPenalty(limit=10, tokens=4, factor=factor)
    assert overlong(torch.tensor([length])).item() == pytest.approx(factor * penalty)


TURNS = [[0, 1, 1, 0, 0, 1, 0], [1, 1, 0]]
"""Two turns of two tokens and one token; and one turn of two."""


def assert_tokens(found: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_gae_steps_over_trained_tokens_alone():
    batch = sequences(TURNS, [0.0, 0.0], [0, 0])
    rewards = torch.tensor([9.0, 1.0, 0.0, 9.0, 9.0, 2.0, 9.0, 0.0, 3.0, 9.0], dtype=torch.float64)
    values = torch.tensor([7.0, 0.5, 0.25, 7.0, 7.0, 1.0, 7.0, 2.0, 1.0, 7.0], dtype=torch.float64)
    # Discount 0.9, lambda 0.5. First sequence: deltas 2 - 1 = 1; 0.9 * 1 - 0.25 = 0.65; 1 + 0.9 * 0.25 - 0.5 = 0.725.
    third = 1.0
    second = 0.65 + 0.45 * third
    first = 0.725 + 0.45 * second
    # Second sequence: delta = 3 - 1 = 2; 0.9 - 2 = -1.1.
    fifth = 2.0
    fourth = -1.1 + 0.45 * fifth
    advantages, returns = generalised_advantages(batch, rewards, values, discount=0.9, gae_lambda=ConstantLambda(0.5))
    assert_tokens(advantages, [0, first, second, 0, 0, third, 0, fourth, fifth, 0])
    assert_tokens(returns, [0, first + 0.5, second + 0.25, 0, 0, third + 1, 0, fourth + 2, fifth + 1, 0])


def test_gae_over_turns_has_one_advantage_per_turn():
    batch = sequences(TURNS, [0.0, 0.0], [0, 0])
    rewards = torch.tensor([9.0, 1.0, 0.5, 9.0, 9.0, 2.0, 9.0, 0.0, 3.0, 9.0], dtype=torch.float64)
    values = torch.tensor([7.0, 0.5, 0.25, 7.0, 7.0, 1.0, 7.0, 2.0, 1.0, 7.0], dtype=torch.float64)
    # A turn has its tokens' rewards and the value of its first token: 1.5 and 0.5; 2 and 1; 3 and 2.
    second = 2 - 1.0
    first = 1.5 + 0.9 * 1 - 0.5 + 0.45 * second
    advantages, returns = generalised_advantages(
        batch, rewards, values, discount=0.9, gae_lambda=ConstantLambda(0.5), unit="turn"
    )
    assert_tokens(advantages, [0, first, first, 0, 0, second, 0, 1, 1, 0])
    assert_tokens(returns, [0, first + 0.5, first + 0.5, 0, 0, second + 1, 0, 3, 3, 0])


def test_turns_of_neighbouring_sequences_are_apart():
    batch = sequences([[0, 1], [1, 1]], [0.0, 0.0], [0, 0])
    rewards = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    assert_tokens(generalised_advantages(batch, rewards, unit="turn")[0], [0, 1, 5, 5])


def test_a_sequence_that_was_cut_off_goes_on_from_its_last_value():
    batch = sequences([[0, 1, 1, 0], [1, 1, 0]], [1.0, 1.0], [0, 1], values=[9.0, 0.5, 0.25, 4.0, 0.5, 0.25, 4.0])
    batch = batch.with_fields({}, {"truncated": torch.tensor([True, False])})
    estimator = ValueAdvantages(bootstrap="truncated", discount=0.5)
    # Cut off: delta = 1 + 0.5 * 4 - 0.25 = 2.75; 0.5 * 0.25 - 0.5 = -0.375. Ended: 0.75 and -0.375.
    assert_tokens(estimator(batch), [0, -0.375 + 0.5 * 2.75, 2.75, 0, -0.375 + 0.5 * 0.75, 0.75, 0])
    assert estimator.fields == {"loss_mask", "values"}
    assert_tokens(ValueAdvantages(discount=0.5)(batch), [0, 0, 0.75, 0, 0, 0.75, 0])


def test_a_turn_pays_for_the_kl_of_each_token_alone():
    batch = sequences([[0, 1, 1, 0]], [1.0], [0], logprobs=[9.0, -1.0, -2.0, 9.0], ref_logprobs=[0.0, -1.5, -1.0, 0.0])
    estimator = GroupAdvantages(kl_ctl=0.1, unit="turn")
    advantages, returns = estimator.with_returns(batch)
    # k1: +0.5 at the first trained token, -1 at the second.
    assert_tokens(advantages, [0, 1 - 0.05, 1 + 0.1, 0])
    assert_tokens(returns, [0, 1, 1, 0])


def test_length_adaptive_lambda_is_vapos():
    # 1 - 1 / (0.5 n): below 0 for one step, 0 for two.
    found = LengthAdaptiveLambda(0.5)(torch.tensor([1, 2, 4, 10, 0]))
    assert found.tolist() == pytest.approx([0, 0, 0.5, 0.8, 0])


def test_relative_position_lambda_keeps_the_share_q_at_the_first_step():
    found = RelativePositionLambda(0.3)(torch.tensor([0, 1, 2, 5]))
    assert found.tolist() == pytest.approx([1, 1, 0.3, 0.3**0.25])
    batch = sequences([[1] * 5], [2.0], [0])
    assert float(GroupAdvantages(gae_lambda=RelativePositionLambda(0.3))(batch)[0]) == pytest.approx(0.6)


def test_every_sequence_has_the_lambda_of_its_length():
    batch = sequences([[1, 1], [1, 1, 1, 1]], [1.0, 1.0], [0, 0])
    estimator = GroupAdvantages(gae_lambda=LengthAdaptiveLambda(0.5))
    assert_tokens(estimator(batch), [0, 1, 0.125, 0.25, 0.5, 1])


def test_opos_baseline_weighs_samples_by_their_lengths():
    # Group 0: lengths 1 and 3, rewards 1 and 0: baseline 1 / 4. Group 1: lengths 2 and 2: baseline 1.5.
    batch = sequences([[0, 1], [1, 1, 1, 0], [1, 1], [1, 1]], [1.0, 0.0, 1.0, 2.0], [0, 0, 1, 1])
    how = Normalisation("group", None, mean_weights="length")
    assert_tokens(GroupAdvantages(reward_norm=how)(batch), [0, 0.75, *[-0.25] * 3, 0, *[-0.5] * 2, *[0.5] * 2])


def test_a_leave_one_out_baseline_can_be_weighted_by_length():
    how = Normalisation("group", None, leave_one_out=True, mean_weights="length")
    values, groups = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64), torch.tensor([0, 0, 0])
    lengths = torch.tensor([1, 2, 3])
    expected = [1 - (4 + 18) / 5, 2 - (1 + 18) / 4, 6 - (1 + 4) / 3]
    assert_tokens(normalise(values, groups, how, lengths=lengths), expected)


def test_maxrl_divides_by_the_groups_mean():
    # Group 0: one success in four, mean 1/4. Group 1: no success, no advantage.
    how = Normalisation("group", "group", scale="mean", eps=0.0)
    values = torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64)
    found = normalise(values, torch.tensor([0, 0, 0, 0, 1, 1]), how)
    assert_tokens(found, [3, -1, -1, -1, 0, 0])


def test_reinforce_plus_plus_normalises_rewards_less_the_kl_over_the_batch():
    # KL estimates k1 of 1 and 2 per token, at 0.1: returns 1 - 0.3 and 1 - 0.2; then 0 - 0.1.
    kl = {"logprobs": [1.0, 2.0, 0.0, 1.0, 0.0], "ref_logprobs": [0.0] * 5}
    batch = sequences([[1, 1, 0], [1, 0]], [1.0, 0.0], [0, 0], **kl)
    plain = GroupAdvantages(kl_ctl=0.1)
    assert_tokens(plain(batch), [0.7, 0.8, 0, -0.1, 0])
    mean = (0.7 + 0.8 - 0.1) / 3
    deviation = math.sqrt(((0.7 - mean) ** 2 + (0.8 - mean) ** 2 + (-0.1 - mean) ** 2) / 2)
    whole = GroupAdvantages(kl_ctl=0.1, adv_norm=Normalisation(eps=0.0))
    assert_tokens(whole(batch), [(0.7 - mean) / deviation, (0.8 - mean) / deviation, 0, (-0.1 - mean) / deviation, 0])
    # The baseline form subtracts the mean reward of the group, 0.5, first.
    baseline = GroupAdvantages(reward_norm=Normalisation("group", None), kl_ctl=0.1)
    assert_tokens(baseline(batch), [0.2, 0.3, 0, -0.6, 0])
