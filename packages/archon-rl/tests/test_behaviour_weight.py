"""The decoupled loss's weight and its bounds, computed by hand."""

from __future__ import annotations

from math import log

import pytest
from loss_cases import batch_of, losses_and_gradients, tensor

from archon_rl.losses.behaviour import BehaviourWeight, RejectionSampling
from archon_rl.losses.objective import Objective
from archon_rl.losses.policy import ClippedPolicyTerm


class TestBehaviourWeight:
    """Two policies at three tokens: ratios 2, 1/4 and 1."""

    PROX = (0.4, 0.1, 0.3)
    BEHAVE = (0.2, 0.4, 0.3)

    def weights(self, rejection: RejectionSampling | None, lengths=(3,)) -> list[float]:
        batch = batch_of(lengths)
        return BehaviourWeight(rejection)(tensor(self.PROX).log(), tensor(self.BEHAVE).log(), batch)[0].tolist()

    def test_without_rejection_the_weight_is_the_ratio(self):
        assert self.weights(None) == pytest.approx([2, 0.25, 1])

    @pytest.mark.parametrize(
        ("metric", "lower", "upper", "expected"),
        [
            ("ratio", None, 1.5, [0, 0.25, 1]),
            ("ratio", 0.5, 1.5, [0, 0, 1]),
            ("ratio", 0.25, 2.0, [2, 0.25, 1]),
            # x = log ratio: 0.693, -1.386, 0.
            ("kl_k1", None, 0.5, [0, 0.25, 1]),
            ("kl_k1", -1.0, 0.7, [2, 0, 1]),
            # x^2 / 2: 0.240, 0.961, 0.
            ("kl_k2", None, 0.5, [2, 0, 1]),
            ("kl_k2", None, 0.2, [0, 0, 1]),
            # exp(-x) - 1 + x: 0.5 - 1 + 0.693 = 0.193; 4 - 1 - 1.386 = 1.614; 0.
            ("kl_k3", None, 0.19, [0, 0, 1]),
            ("kl_k3", None, 0.20, [2, 0, 1]),
            ("kl_k3", 0.1, 2.0, [2, 0.25, 0]),
        ],
    )
    def test_a_token_outside_the_bounds_of_its_metric_has_weight_zero(self, metric, lower, upper, expected):
        rule = RejectionSampling(metric=metric, lower=lower, upper=upper)
        assert self.weights(rule) == pytest.approx(expected)

    def test_the_binary_kl_is_the_larger_of_its_two_directions(self):
        def kl(p: float, q: float) -> float:
            return p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))

        first = max(kl(0.4, 0.2), kl(0.2, 0.4))
        second = max(kl(0.1, 0.4), kl(0.4, 0.1))
        assert kl(0.4, 0.2) > kl(0.2, 0.4)
        assert kl(0.4, 0.1) > kl(0.1, 0.4)
        for upper, expected in (
            (second + 1e-9, [2, 0.25, 1]),
            (second - 1e-9, [2, 0, 1]),
            (first - 1e-9, [0, 0, 1]),
        ):
            assert self.weights(RejectionSampling(metric="binary_kl", upper=upper)) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("lower", "upper", "expected"), [(None, 1.5, [1.5, 0.25, 1]), (0.5, 1.5, [1.5, 0.5, 1]), (0.5, 9, [2, 0.5, 1])]
    )
    def test_clamping_limits_the_weight_to_the_bounds(self, lower, upper, expected):
        assert self.weights(RejectionSampling(action="clamp", lower=lower, upper=upper)) == pytest.approx(expected)

    def test_the_geometric_mean_is_the_weight_of_every_token_of_a_sequence(self):
        # Sequences of two tokens and of one: sqrt(2 / 4), and 1.
        rule = RejectionSampling(level="sequence", upper=5.0)
        assert self.weights(rule, (2, 1)) == pytest.approx([0.5**0.5, 0.5**0.5, 1])
        clamped = RejectionSampling(level="sequence", action="clamp", lower=0.8, upper=0.9)
        assert self.weights(clamped, (2, 1)) == pytest.approx([0.8, 0.8, 0.9])

    @pytest.mark.parametrize(
        ("agg", "lower", "upper", "weight"),
        [
            # The largest ratio, 2, is within the bounds; then it is not, and the weight is 0.707 or limited to 0.6.
            ("max", 0.8, 9.0, 0.5**0.5),
            ("max", 0.5, 1.5, 0.5**0.5),
            ("max", 0.5, 0.6, 0.6),
            # The sequence's ratio is 0.5.
            ("sum", 0.8, 9.0, 0.8),
            ("sum", 0.1, 0.6, 0.5**0.5),
            ("sum", 0.1, 0.4, 0.4),
        ],
    )
    def test_a_sequence_whose_metric_is_within_the_bounds_is_not_clamped(self, agg, lower, upper, weight):
        rule = RejectionSampling(level="sequence", action="clamp", agg=agg, lower=lower, upper=upper)
        assert self.weights(rule, (2, 1))[:2] == pytest.approx([weight, weight])

    @pytest.mark.parametrize(
        ("agg", "lower", "kept"),
        [
            # The sequence's ratio is 2 * 1/4 = 0.5, its geometric mean 0.707, its largest ratio 2.
            ("sum", 0.6, False),
            ("sum", 0.4, True),
            ("mean", 0.8, False),
            ("mean", 0.6, True),
            ("max", 1.9, True),
            ("max", 2.1, False),
        ],
    )
    def test_ratios_of_a_sequence_are_summed_and_averaged_as_logarithms(self, agg, lower, kept):
        rule = RejectionSampling(level="sequence", agg=agg, lower=lower)
        weight = 0.5**0.5 if kept else 0
        assert self.weights(rule, (2, 1))[:2] == pytest.approx([weight, weight])

    @pytest.mark.parametrize(("agg", "value"), [("sum", 0.2402265 + 0.9609060), ("mean", 0.6005663), ("max", 0.960906)])
    def test_kls_of_a_sequence_are_aggregated_as_they_are(self, agg, value):
        # k2: log(2)^2 / 2 = 0.2402265 and log(4)^2 / 2 = 0.9609060; the weights stay those of the tokens.
        inside = RejectionSampling(level="sequence", metric="kl_k2", agg=agg, upper=value + 1e-6)
        outside = RejectionSampling(level="sequence", metric="kl_k2", agg=agg, upper=value - 1e-6)
        assert self.weights(inside, (2, 1)) == pytest.approx([2, 0.25, 1])
        assert self.weights(outside, (2, 1)) == pytest.approx([0, 0, 1])

    def test_the_decoupled_loss_is_multiplied_by_the_weight_and_keeps_its_denominator(self):
        batch = batch_of((2,), behave=[0.2, 0.4], prox=[0.4, 0.1], advantages=[1.0, -1.0])
        term = ClippedPolicyTerm(behaviour=BehaviourWeight(RejectionSampling(lower=0.5, upper=5.0)))
        losses, gradients = losses_and_gradients(term, [0.44, 0.1], batch)
        # The first ratio to pi_prox is 1.1, its weight 2; the second token is masked.
        assert losses == pytest.approx([-1.1 * 2, 0])
        assert gradients == pytest.approx([-1.1 * 2, 0])
        assert float(Objective((term,)).weights(batch)["token"]) == 2
