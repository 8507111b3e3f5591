"""The value loss, the explained variance and advantages with values, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archon_core.contracts.batch import Batch
from archon_rl.advantages import ConstantLambda, ValueAdvantages
from archon_rl.losses.objective import Objective
from archon_rl.losses.value import ValueTerm, explained_variance

MASK = torch.tensor([True, True, True, True, False])
RETURNS = torch.tensor([1.0, 1.0, 1.0, 1.0, 7.0], dtype=torch.float64)
OLD = torch.tensor([0.0, 0.0, 0.0, 2.0, 7.0], dtype=torch.float64)
NEW = torch.tensor([0.1, 0.6, -0.4, 1.2, 7.0], dtype=torch.float64)


def evaluate(term: ValueTerm) -> tuple[float, list[float], dict[str, float]]:
    """Loss, gradient by the values and metrics, with the engine's division."""
    values = NEW.clone().requires_grad_()
    batch = Batch(torch.zeros(5, dtype=torch.int64), (5,), {"loss_mask": MASK, "values": OLD, "returns": RETURNS})
    objective = Objective((term,))
    weights = objective.weights(batch)
    sums = objective({"values": values}, batch)
    loss = sum(value / weights[unit] for unit, value in sums.terms.items())
    (gradient,) = torch.autograd.grad(loss, values)
    metrics = {name: float(value / weights[unit]) for name, (unit, value) in sums.metrics.items()}
    return float(loss.detach()), gradient.tolist(), metrics


def test_the_plain_loss_is_half_the_mean_squared_error_of_trained_tokens():
    loss, gradient, metrics = evaluate(ValueTerm())
    # Errors -0.9, -0.4, -1.4, 0.2.
    assert loss == pytest.approx((0.81 + 0.16 + 1.96 + 0.04) / 2 / 4)
    assert gradient == pytest.approx([-0.9 / 4, -0.4 / 4, -1.4 / 4, 0.2 / 4, 0])
    assert metrics == pytest.approx({"value_loss": loss, "values": 1.5 / 4, "returns": 1.0})


def test_a_value_beyond_the_clip_range_has_no_gradient_if_it_moved_towards_its_return():
    loss, gradient, metrics = evaluate(ValueTerm(eps_clip=0.5))
    # Clipped values 0.1, 0.5, -0.4, 1.5: the second and the fourth have the larger error, 0.5 each; the third, which
    # moved away from its return, is inside of the range.
    assert loss == pytest.approx((0.81 + 0.25 + 1.96 + 0.25) / 2 / 4)
    assert gradient == pytest.approx([-0.9 / 4, 0, -1.4 / 4, 0, 0])
    assert metrics["value_clip_fraction"] == pytest.approx(2 / 4)
    # A value that moved away beyond the range keeps its gradient: its own error is the larger one.
    _, gradient, metrics = evaluate(ValueTerm(eps_clip=0.3))
    assert gradient == pytest.approx([-0.9 / 4, 0, -1.4 / 4, 0, 0])


@given(st.lists(st.tuples(*[st.floats(-3, 3)] * 3), min_size=1, max_size=8), st.floats(0.01, 2))
def test_the_clipped_loss_is_the_larger_of_both_errors(rows, eps):
    """The formula of OpenAI's baselines: 0.5 max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2)."""
    new, old, returns = torch.tensor(rows, dtype=torch.float64).T
    batch = Batch(torch.zeros(len(rows), dtype=torch.int64), (len(rows),), {"values": old, "returns": returns})
    found = ValueTerm(eps)({"values": new}, batch).values
    expected = [
        0.5 * max((v - r) ** 2, (o + min(max(v - o, -eps), eps) - r) ** 2)
        for v, o, r in zip(new.tolist(), old.tolist(), returns.tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_clips_no_value_within_the_range(dtype):
    draws = torch.Generator().manual_seed(0)
    old, new, returns = (torch.rand(3, 1000, generator=draws, dtype=dtype) - 0.5) * 0.19
    assert (old + (new - old) != new).any(), "the difference is rounded"
    new.requires_grad_()
    batch = Batch(torch.zeros(1000, dtype=torch.int64), (1000,), {"values": old, "returns": returns})
    found = ValueTerm(0.2)({"values": new}, batch)
    (gradient,) = torch.autograd.grad(found.values.sum(), new)
    assert torch.equal(gradient, (new - returns).detach())
    assert not found.metrics["value_clip_fraction"].any()


def test_explained_variance_compares_errors_with_returns():
    returns, mask = torch.tensor([1.0, 3.0, 5.0, 100.0]), torch.tensor([True, True, True, False])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.full((4,), 9.0), returns, mask) == 0.0
    # Errors 1, 1, 4 have variance 2; the returns' is 8 / 3.
    assert explained_variance(torch.tensor([0.0, 2.0, 1.0, 0.0]), returns, mask) == pytest.approx(1 - 2 / (8 / 3))
    assert explained_variance(torch.tensor([5.0, 3.0, 1.0, 0.0]), returns, mask) == pytest.approx(-3.0)


@pytest.mark.parametrize("n", [1, 3])
def test_returns_without_variance_explain_nothing(n):
    returns = torch.full((n,), 0.3, dtype=torch.float64) + torch.arange(n) * 1e-17
    assert explained_variance(torch.randn(n), returns, torch.ones(n, dtype=torch.bool)) == 0.0


def test_returns_can_have_another_lambda_than_advantages():
    batch = Batch(
        torch.zeros(4, dtype=torch.int64),
        (4,),
        {
            "loss_mask": torch.tensor([True, True, True, False]),
            "values": torch.tensor([0.5, 0.25, 0.75, 9.0], dtype=torch.float64),
        },
        {"rewards": torch.tensor([1.0], dtype=torch.float64), "group": torch.tensor([0])},
    )
    estimator = ValueAdvantages(gae_lambda=ConstantLambda(0.5), returns_lambda=ConstantLambda(1.0))
    advantages, returns = estimator.with_returns(batch)
    # Deltas -0.25, 0.5, 0.25; with lambda 1 the return of every token is the reward.
    expected = [-0.25 + 0.5 * (0.5 + 0.5 * 0.25), 0.5 + 0.5 * 0.25, 0.25, 0]
    assert advantages.tolist() == pytest.approx(expected)
    assert returns.tolist() == pytest.approx([1, 1, 1, 0])
    own = ValueAdvantages(gae_lambda=ConstantLambda(0.5)).with_returns(batch)[1]
    assert own.tolist() == pytest.approx([e + v for e, v in zip(expected, [0.5, 0.25, 0.75, 0], strict=True)])
