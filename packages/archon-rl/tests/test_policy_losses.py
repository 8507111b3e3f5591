"""Policy losses against their papers' formulas, computed by hand with Python's floats.

A case is one or two sequences of a few tokens. The expected losses are those of single tokens, before aggregation.
"""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from loss_cases import batch_of, losses_and_gradients, tensor

from archon_core.contracts.batch import Batch
from archon_rl.losses.behaviour import BehaviourWeight
from archon_rl.losses.cispo import CISPOTerm
from archon_rl.losses.covariance import ClipCovMask, KLCovMask, KLCovTerm
from archon_rl.losses.dppo import DPPOTerm
from archon_rl.losses.gmpo import GMPOTerm
from archon_rl.losses.m2po import SecondMomentMask
from archon_rl.losses.policy import ClippedPolicyTerm
from archon_rl.losses.proximal import prox_fraction
from archon_rl.losses.sapo import SAPOTerm


def test_gspo_clips_the_geometric_mean_of_a_sequences_ratios():
    # Ratios 1.2, 1.5 and 0.9 in the first sequence: (1.2 * 1.5 * 0.9)^(1/3) = 1.1744; 1.1 and 1.3 in the second.
    behave = [0.5, 0.2, 0.6, 0.5, 0.3]
    current = [0.6, 0.3, 0.54, 0.55, 0.39]
    batch = batch_of((3, 2), behave=behave, advantages=[2.0, 2.0, 2.0, -1.0, -3.0])
    first, second = (1.2 * 1.5 * 0.9) ** (1 / 3), (1.1 * 1.3) ** 0.5
    losses, gradients = losses_and_gradients(ClippedPolicyTerm(level="sequence", eps_clip=0.2), current, batch)
    assert losses == pytest.approx([-first * 2] * 3 + [second * 2] * 2)
    # d/dlogp of -3 s A with s = exp(mean): -s A for each token.
    assert gradients == pytest.approx([-first * 2] * 3 + [second * 2] * 2)
    narrow, constant = losses_and_gradients(ClippedPolicyTerm(level="sequence", eps_clip=0.1), current, batch)
    assert narrow[:3] == pytest.approx([-1.1 * 2] * 3)
    assert constant[:3] == [0, 0, 0]


def test_cispo_clips_the_weight_and_keeps_the_gradient():
    batch = batch_of((4,), behave=[0.1, 0.5, 0.4, 0.5], advantages=[1.0, 2.0, -1.0, 0.0])
    current = [0.9, 0.55, 0.1, 0.5]
    # Ratios 9, 1.1, 0.25 and 1, clipped to [0.5, 5].
    term = CISPOTerm(eps_clip=0.5, eps_clip_higher=4.0)
    losses, gradients = losses_and_gradients(term, current, batch)
    assert losses == pytest.approx([-5 * log(0.9), -1.1 * 2 * log(0.55), 0.5 * log(0.1), 0])
    assert gradients == pytest.approx([-5, -1.1 * 2, 0.5, 0])
    unbounded_below = CISPOTerm(eps_clip=1.0, eps_clip_higher=4.0)
    assert losses_and_gradients(unbounded_below, current, batch)[1] == pytest.approx([-5, -2.2, 0.25, 0])


def test_sapo_gates_with_the_temperature_of_the_advantages_sign():
    def sigmoid(x: float) -> float:
        return 1 / (1 + exp(-x))

    batch = batch_of((3,), behave=[0.2, 0.4, 0.5], advantages=[1.5, -2.0, 1.0])
    losses, gradients = losses_and_gradients(SAPOTerm(tau_pos=2.0, tau_neg=3.0), [0.3, 0.2, 0.5], batch)
    # Ratios 1.5, 0.5 and 1.
    up, down = sigmoid(2 * 0.5), sigmoid(3 * -0.5)
    assert losses == pytest.approx([-2 * up * 1.5, 4 / 3 * down * 2, -2 * 0.5])
    # d(4 / tau sigmoid(tau (r - 1)))/dlog r = 4 p (1 - p) r.
    assert gradients == pytest.approx([-4 * up * (1 - up) * 1.5 * 1.5, 4 * down * (1 - down) * 0.5 * 2, -1])


def test_dppo_masks_tokens_that_an_update_would_drive_too_far_apart():
    # Changes of probability: +0.3 and -0.3 with both signs of the advantage, and +0.1.
    batch = batch_of((5,), behave=[0.5, 0.5, 0.5, 0.5, 0.5], advantages=[1.0, -1.0, 1.0, -1.0, 1.0])
    current = [0.8, 0.8, 0.2, 0.2, 0.6]
    term = DPPOTerm(mask_low=0.2, mask_high=0.2, kl_coef=0.01)
    losses, gradients = losses_and_gradients(term, current, batch)
    up, down, little = log(1.6), log(0.4), log(1.2)
    expected = [
        0.01 * up**2,
        1.6 + 0.01 * up**2,
        -0.4 + 0.01 * down**2,
        0.01 * down**2,
        -1.2 + 0.01 * little**2,
    ]
    assert losses == pytest.approx(expected)
    slopes = [0.02 * up, 1.6 + 0.02 * up, -0.4 + 0.02 * down, 0.02 * down, -1.2 + 0.02 * little]
    assert gradients == pytest.approx(slopes)


def test_dppos_binary_kl_is_that_of_the_rollouts_policy():
    # kl(0.5, 0.8) = 0.5 log(0.5 / 0.8) + 0.5 log(0.5 / 0.2).
    divergence = 0.5 * log(0.5 / 0.8) + 0.5 * log(0.5 / 0.2)
    batch = batch_of(behave=[0.5], advantages=[1.0])
    for threshold, loss in ((divergence + 1e-9, -1.6), (divergence - 1e-9, 0.0)):
        term = DPPOTerm(mask_high=threshold, divergence="kl", kl_coef=0.0)
        assert losses_and_gradients(term, [0.8], batch)[0] == pytest.approx([loss])


def test_dppo_penalises_tokens_without_advantage():
    batch = batch_of(behave=[0.5], advantages=[0.0])
    assert losses_and_gradients(DPPOTerm(kl_coef=0.5), [0.6], batch)[0] == pytest.approx([0.5 * log(1.2) ** 2])


def test_gmpo_averages_clipped_log_ratios():
    # Log-ratios 1, -2 and 0.1; a positive advantage clips from above, a negative one from below.
    ratios = [exp(1), exp(-2), exp(0.1)]
    behave = [0.1, 0.5, 0.3]
    current = [b * r for b, r in zip(behave, ratios, strict=True)]
    up = exp((0.4 - 2 + 0.1) / 3)
    losses, gradients = losses_and_gradients(
        GMPOTerm(eps_clip=0.4), current, batch_of((3,), behave=behave, advantages=[2.0, 2.0, 2.0])
    )
    assert losses == pytest.approx([-up * 2] * 3)
    assert gradients == pytest.approx([0, -up * 2, -up * 2])
    down = exp((1 - 0.3 + 0.1) / 3)
    losses, gradients = losses_and_gradients(
        GMPOTerm(eps_clip=0.3, eps_clip_higher=9.0), current, batch_of((3,), behave=behave, advantages=[-1.0] * 3)
    )
    assert losses == pytest.approx([down] * 3)
    assert gradients == pytest.approx([down, 0, down])


def test_m2po_masks_as_few_tokens_as_its_threshold_needs():
    # Each log-ratio has its advantage's sign. Squares: 0.01, 1, 0.04 and 0.25; the means of the smallest 1, 2, 3, 4 of
    # them: 0.01, 0.025, 0.1, 0.325.
    behave = [0.1, 0.2, 0.3, 0.4]
    logprobs = tensor(behave).log() + tensor([0.1, -1.0, -0.2, 0.5])
    batch = batch_of((1, 3), behave=behave, advantages=[1.0, -2.0, -1.0, 3.0])
    for threshold, kept in (
        (0.33, [True, True, True, True]),
        (0.101, [True, False, True, True]),
        (0.0251, [True, False, True, False]),
        (0.0101, [True, False, False, False]),
        (0.0099, [False, False, False, False]),
    ):
        assert SecondMomentMask(threshold)({"logprobs": logprobs}, batch).tolist() == kept, threshold


def test_m2po_keeps_every_token_that_an_update_brings_back():
    # Log-ratios 1, 1, -1, -1, 0.2, 1: the second, third and last are not driven away. The others' squares, 1, 1 and
    # 0.04, have means 0.04, 0.52 and 0.68; with all six tokens, the means would be 0.04, 0.52, 0.68, ..., 0.84.
    logprobs = tensor([0.1] * 6).log() + tensor([1.0, 1.0, -1.0, -1.0, 0.2, 1.0])
    batch = batch_of((6,), behave=[0.1] * 6, advantages=[1.0, -1.0, 1.0, -1.0, 1.0, 0.0])
    assert SecondMomentMask(0.5)({"logprobs": logprobs}, batch).tolist() == [False, True, True, False, True, True]
    assert SecondMomentMask(0.69)({"logprobs": logprobs}, batch).tolist() == [True] * 6
    assert SecondMomentMask(0.03)({"logprobs": logprobs}, batch).tolist() == [False, True, True, False, False, True]


def test_m2po_takes_rounding_for_no_advantage():
    # With the second token, the mean would be 0.625, and both would stay.
    logprobs = tensor([0.1] * 2).log() + tensor([1.0, 0.5])
    batch = batch_of((2,), behave=[0.1] * 2, advantages=[1.0, 1e-16])
    assert SecondMomentMask(0.7)({"logprobs": logprobs}, batch).tolist() == [False, True]


def test_m2pos_loss_is_not_clipped_and_masked_tokens_leave_it():
    kept = torch.tensor([True, False])
    batch = batch_of((2,), behave=[0.1, 0.5], advantages=[1.0, 1.0], m2_kept=kept)
    losses, gradients = losses_and_gradients(ClippedPolicyTerm(eps_clip=None, masks=("m2_kept",)), [0.3, 0.6], batch)
    assert losses == pytest.approx([-3, 0])
    assert gradients == pytest.approx([-3, 0])


class TestCovariance:
    """Log-probabilities -1, -2, -3, -6 (mean -3) and advantages 2, 1, -1, -2 (mean 0): 4, 1, 0 and 6."""

    LOGPROBS = tensor([-1.0, -2.0, -3.0, -6.0])
    BATCH = batch_of((2, 2), behave=[0.1] * 4, advantages=[2.0, 1.0, -1.0, -2.0])

    @pytest.mark.parametrize(
        ("ratio", "lower", "upper", "kept"),
        [
            (0.25, 1.0, 5.0, [False, True, True, True]),
            (0.5, 1.0, 5.0, [False, False, True, True]),
            (1.0, 1.0, 5.0, [False, False, True, True]),
            (0.25, 1.0, 7.0, [True, True, True, False]),
            (0.0, 5.0, 7.0, [True, True, True, False]),
            (0.5, 8.0, 9.0, [True, True, True, True]),
        ],
    )
    def test_clip_cov_leaves_out_the_largest_within_its_bounds(self, ratio, lower, upper, kept):
        mask = ClipCovMask(ratio, lower, upper)
        assert mask({"logprobs": self.LOGPROBS}, self.BATCH).tolist() == kept

    @pytest.mark.parametrize(
        ("ratio", "chosen"), [(1e-4, [False] * 3 + [True]), (0.5, [True, False, False, True]), (1.0, [True] * 4)]
    )
    def test_kl_cov_chooses_the_largest(self, ratio, chosen):
        assert KLCovMask(ratio)({"logprobs": self.LOGPROBS}, self.BATCH).tolist() == chosen

    def test_means_are_over_trained_tokens_alone(self):
        mask = torch.tensor([True, True, True, True, False])
        fields = {"loss_mask": mask, "advantages": tensor([2.0, 1.0, -1.0, -2.0, 99.0])}
        batch = Batch(torch.zeros(5, dtype=torch.int64), (5,), fields)
        logprobs = torch.cat([self.LOGPROBS, tensor([torch.nan])])
        assert KLCovMask(0.5)({"logprobs": logprobs}, batch).tolist() == [True, False, False, True, False]

    def test_rounding_chooses_no_token(self):
        """Layouts round advantages and log-probabilities differently, and must choose the same tokens."""
        fields = {"loss_mask": torch.ones(4, dtype=torch.bool), "advantages": tensor([1e-16, -2e-16, 3e-17, 1e-16])}
        batch = Batch(torch.zeros(4, dtype=torch.int64), (4,), fields)
        first = [True, True, False, False]
        for logprobs in (self.LOGPROBS, -self.LOGPROBS):
            assert KLCovMask(0.5)({"logprobs": logprobs}, batch).tolist() == first

    def test_kl_cov_penalises_the_chosen_tokens_alone(self):
        chosen = torch.tensor([True, False])
        batch = batch_of((2,), behave=[0.2, 0.2], advantages=[1.0, 1.0], cov_penalised=chosen)
        losses, gradients = losses_and_gradients(KLCovTerm(kl_coef=0.5), [0.3, 0.3], batch)
        assert losses == pytest.approx([-1.5 + 0.5 * (1.5 - 1 - log(1.5)), -1.5])
        assert gradients == pytest.approx([-1.5 + 0.5 * (1.5 - 1), -1.5])


class TestProximalPolicy:
    def test_the_fraction_is_the_part_of_the_versions_that_had_passed_at_the_start_of_the_step(self):
        versions = torch.tensor([4, 5, 7, 8, -1])
        # The step began at version 7; two updates later the weights have version 9.
        assert prox_fraction(versions, 7, 9).tolist() == pytest.approx([3 / 5, 2 / 4, 0, 0, 8 / 10])
        # In the step's first update the proximal policy is the current one.
        assert prox_fraction(versions, 7, 7).tolist() == [1, 1, 1, 1, 1]

    def test_the_log_linear_form_interpolates_between_rollout_and_training(self):
        batch = batch_of((2,), behave=[0.2, 0.2], advantages=[1.0, 1.0], prox_fraction=[0.5, 0.0])
        term = ClippedPolicyTerm(eps_clip=None, behaviour=BehaviourWeight(), proximal="interpolated")
        assert term.fields == {"advantages", "logprobs", "prox_fraction"}
        losses, gradients = losses_and_gradients(term, [0.8, 0.4], batch)
        # log pi_prox = log sqrt(0.2 * 0.8) = log 0.4: ratio 2, weight 2; then pi_prox = pi_behave: ratio 2, weight 1.
        assert losses == pytest.approx([-4, -2])
        assert gradients == pytest.approx([-4, -2])

    def test_the_training_pass_can_be_the_proximal_policy(self):
        batch = batch_of(behave=[0.2], advantages=[1.0])
        term = ClippedPolicyTerm(behaviour=BehaviourWeight(), proximal="current")
        assert term.fields == {"advantages", "logprobs"}
        losses, gradients = losses_and_gradients(term, [0.5], batch)
        assert losses == pytest.approx([-2.5])
        assert gradients == pytest.approx([-2.5])

    def test_the_errors_of_approximations_are_reported(self):
        batch = batch_of(behave=[0.2], prox=[0.3], advantages=[1.0], prox_fraction=[0.5])
        term = ClippedPolicyTerm(behaviour=BehaviourWeight(), report_approximations=True)
        metrics = term({"logprobs": tensor([0.8]).log()}, batch).metrics
        assert float(metrics["prox_error/loglinear"]) == pytest.approx(log(0.4) - log(0.3))
        assert float(metrics["prox_error/linear"]) == pytest.approx(log(0.5) - log(0.3))
        assert float(metrics["prox_error/rollout"]) == pytest.approx(log(0.3) - log(0.2))
