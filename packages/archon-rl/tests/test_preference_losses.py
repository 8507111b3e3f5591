"""Losses over pairs: values computed by hand, extreme values, and independence of the split into micro-batches."""

from __future__ import annotations

import math

import pytest
import torch
from table_model import TableModel, evaluate

from archon_core.contracts.batch import Batch
from archon_rl.losses.preference import (
    PAIR_LOSSES,
    PAIRS,
    REFERENCE,
    BradleyTerryLoss,
    PreferenceLoss,
    last_values,
    sequence_logprobs,
)

TOLERANCE = 1e-9
LENGTHS = (7, 3, 11, 5, 9, 2, 8, 6)
PROMPTS = (2, 2, 4, 4, 5, 1, 2, 2)
SPLITS = ([[0, 1, 4, 5], [2, 3, 6, 7]], [[6, 7], [4, 5, 0, 1], [2, 3]], [[0, 1], [2, 3], [4, 5], [6, 7]])
LOSSES = {
    f"{kind}, {average=}": PreferenceLoss(kind, 0.3, average) for kind in PAIR_LOSSES for average in (False, True)
}
LOSSES["bradley-terry"] = BradleyTerryLoss()


def pairs(values: list[list[float]], reference: list[float], prompts: list[int]) -> tuple[Batch, dict]:
    """Sequences whose predictions have the given log-probabilities after their prompts, NaN before and at the end."""
    lengths = [len(row) for row in values]
    mask = [[prompt - 1 <= i < n - 1 for i in range(n)] for n, prompt in zip(lengths, prompts, strict=True)]
    batch = Batch.from_sequences(
        [range(n) for n in lengths],
        {"loss_mask": mask},
        {PAIRS: torch.arange(len(lengths) // 2).repeat_interleave(2), REFERENCE: torch.tensor(reference).double()},
    )
    return batch, {"logprobs": torch.tensor([v for row in values for v in row], requires_grad=True)}


def reported(loss, outputs, batch) -> tuple[float, dict[str, float]]:
    sums, [(unit, weight)] = loss(outputs, batch), loss.weights(batch).items()
    assert {unit} == set(sums.terms) == {u for u, _ in sums.metrics.values()}
    return float(sums.terms[unit].detach() / weight), {name: float(v / weight) for name, (_, v) in sums.metrics.items()}


NAN = math.nan
PAIR = [[NAN, -0.5, -0.25, NAN], [NAN, -1.0, NAN], [-2.0, -1.0, NAN], [-0.5, NAN]]
"""Two pairs: sums -0.75 and -1, -3 and -0.5, over 2, 1, 2 and 1 trained tokens."""
REF = [-1.0, -0.5, -3.5, -0.75]
"""Log-ratios 0.25 and -0.5, 0.5 and 0.25; h is 0.75 and 0.25, and of averages 0.625 and 0."""


def test_sigmoid_and_its_metrics_by_hand():
    batch, outputs = pairs(PAIR, REF, [2, 2, 1, 1])
    value, metrics = reported(PreferenceLoss("sigmoid", 0.5), outputs, batch)
    expected = [math.log(1 + math.exp(-0.5 * h)) for h in (0.75, 0.25)]
    assert value == pytest.approx(sum(expected) / 2, rel=1e-7)
    assert metrics == pytest.approx(
        {
            "accuracy": 1.0,
            "margin": 0.5 * (0.75 + 0.25) / 2,
            "chosen_reward": 0.5 * (0.25 + 0.5) / 2,
            "rejected_reward": 0.5 * (-0.5 + 0.25) / 2,
            "policy_accuracy": 0.5,
        }
    )


@pytest.mark.parametrize(("average", "differences"), [(False, (0.75, 0.25)), (True, (0.625, 0.0))])
def test_ipo_by_hand_with_sums_and_with_averages(average, differences):
    batch, outputs = pairs(PAIR, REF, [2, 2, 1, 1])
    value, metrics = reported(PreferenceLoss("ipo", 0.5, average), outputs, batch)
    assert value == pytest.approx(sum((h - 1) ** 2 for h in differences) / 2)
    assert metrics["margin"] == pytest.approx(0.5 * sum(differences) / 2)
    assert metrics["accuracy"] == (1.0 if not average else 0.5), "equal values count as wrong"


def test_gradients_are_those_of_the_formula_and_stay_out_of_the_prompt():
    batch, outputs = pairs(PAIR, REF, [2, 2, 1, 1])
    sums = PreferenceLoss("sigmoid", 0.5)(outputs, batch)
    (gradient,) = torch.autograd.grad(sums.terms["sequence"], outputs["logprobs"])
    slopes = [0.5 / (1 + math.exp(0.5 * h)) for h in (0.75, 0.25)]
    first, second = slopes
    expected = [0, -first, -first, 0, 0, first, 0, -second, -second, 0, second, 0]
    assert gradient.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_value_at_the_last_token_is_the_score_of_a_sequence():
    batch, _ = pairs(PAIR, REF, [2, 2, 1, 1])
    values = torch.arange(12.0)
    assert last_values(values, batch).tolist() == [3, 6, 9, 11]
    value, metrics = reported(BradleyTerryLoss(), {"values": values}, batch)
    assert value == pytest.approx((math.log(1 + math.exp(3)) + math.log(1 + math.exp(2))) / 2)
    expected = {"accuracy": 0.0, "margin": -2.5, "chosen_score": 6.0, "rejected_score": 8.5}
    assert metrics == pytest.approx(expected)


@pytest.mark.parametrize("kind", PAIR_LOSSES)
def test_far_apart_answers_have_finite_losses_and_gradients(kind):
    for rows in ([[NAN, -1e4, NAN], [NAN, -1.0, NAN]], [[NAN, -1.0, NAN], [NAN, -1e4, NAN]]):
        batch, outputs = pairs(rows, [-1.0, -1.0], [2, 2])
        term = PreferenceLoss(kind, 1.0)(outputs, batch).terms["sequence"]
        (gradient,) = torch.autograd.grad(term, outputs["logprobs"])
        assert torch.isfinite(term)
        assert torch.isfinite(gradient).all()


def test_sums_of_long_sequences_are_more_exact_than_float32():
    n = 30_000
    logprobs = torch.full((n,), -1.1)
    batch = Batch(torch.zeros(n, dtype=torch.int64), (n,), {"loss_mask": torch.ones(n, dtype=torch.bool)})
    exact = float(torch.tensor(-1.1)) * n
    assert float(sequence_logprobs(logprobs, batch)[0]) == pytest.approx(exact, rel=1e-12)


class Valued(TableModel):
    """With a value per position, which depends on the table."""

    def __call__(self, batch):
        return {**super().__call__(batch), "values": self.table[batch.input_ids].sin().sum(-1)}


@pytest.mark.parametrize("name", LOSSES)
def test_no_split_changes_loss_gradient_or_metrics(name):
    generator = torch.Generator().manual_seed(4)
    trained = [
        (torch.arange(n) >= prompt - 1) & (torch.arange(n) < n - 1) for n, prompt in zip(LENGTHS, PROMPTS, strict=True)
    ]
    batch = Batch(torch.randint(13, (sum(LENGTHS),), generator=generator), LENGTHS, {"loss_mask": torch.cat(trained)})
    with torch.no_grad():
        reference = sequence_logprobs(TableModel(13)(batch)["logprobs"], batch)
    reference += 2 * torch.randn(len(batch), generator=generator, dtype=torch.float64)
    batch = batch.with_fields(sequence_fields={PAIRS: torch.arange(4).repeat_interleave(2), REFERENCE: reference})
    value, gradient, metrics = evaluate(Valued(13), LOSSES[name], batch, [list(range(8))])
    assert gradient.abs().max() > 1e-4
    assert 0 < metrics["accuracy"] < 1
    for parts in SPLITS:
        other, other_gradient, other_metrics = evaluate(Valued(13), LOSSES[name], batch, parts)
        assert float(other) == pytest.approx(float(value), rel=TOLERANCE, abs=TOLERANCE)
        assert (other_gradient - gradient).abs().max() <= TOLERANCE * gradient.abs().max()
        assert other_metrics == pytest.approx(metrics, rel=TOLERANCE, abs=TOLERANCE)


def test_a_split_that_separates_a_pair_is_noticed():
    batch, outputs = pairs(PAIR, REF, [2, 2, 1, 1])
    with pytest.raises(AssertionError, match="side by side"):
        PreferenceLoss()(outputs, batch.select([0, 2, 1, 3]))
    with pytest.raises(AssertionError, match="whole pairs"):
        BradleyTerryLoss()({"values": torch.zeros(4)}, batch.select([0]))
