"""Losses against their published formulas written out on dense tensors, and against every split of a batch."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_model import TableModel, evaluate

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import Loss
from archon_rl.losses.aggregation import ConstantLength, SequenceMean, TokenMean
from archon_rl.losses.entropy import EntropyTerm
from archon_rl.losses.kl import KLTerm, kl_estimate
from archon_rl.losses.objective import Objective
from archon_rl.losses.policy import ClippedPolicyTerm
from archon_rl.losses.supervised import NegativeLogLikelihood

VOCABULARY = 11
LENGTHS = (5, 1, 7, 3, 4, 2)
PROMPTS = (2, 1, 3, 1, 4, 1)
"""Tokens of the prompt per sequence; sequences 1 and 4 have no continuation."""

AGGREGATIONS = {"token": TokenMean(), "sequence": SequenceMean(), "constant": ConstantLength(8)}


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    n_tokens = sum(LENGTHS)

    def noise(scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(n_tokens, generator=generator, dtype=torch.float64)

    mask = torch.cat(
        [
            (torch.arange(n) >= prompt - 1) & (torch.arange(n) < n - 1)
            for n, prompt in zip(LENGTHS, PROMPTS, strict=True)
        ]
    )
    sampled = -2 + noise(0.5)
    return Batch(
        input_ids=torch.randint(VOCABULARY, (n_tokens,), generator=generator),
        lengths=LENGTHS,
        token_fields={
            "loss_mask": mask,
            "advantages": noise(),
            "logprobs": sampled,
            "prox_logprobs": sampled + noise(0.2),
            "ref_logprobs": sampled + noise(0.3),
        },
    )


def objective_value(loss: Loss, batch: Batch, parts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, dict]:
    return evaluate(TableModel(VOCABULARY), loss, batch, parts)


def sequence_rows(batch: Batch, values: torch.Tensor) -> list[torch.Tensor]:
    """The trained values of every sequence."""
    mask = batch.token_fields["loss_mask"]
    return [values[a:b][mask[a:b]] for a, b in pairwise(batch.offsets)]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_objective_and_gradient_do_not_depend_on_the_split(batch, aggregation):
    loss = Objective((ClippedPolicyTerm(), EntropyTerm(0.01), KLTerm(0.1)), AGGREGATIONS[aggregation])
    assert isinstance(loss, Loss)
    whole = objective_value(loss, batch, [[0, 1, 2, 3, 4, 5]])
    for parts in ([[0, 1, 2], [3, 4, 5]], [[5, 0], [2, 1], [3], [4]], [[i] for i in range(6)]):
        value, gradient, metrics = objective_value(loss, batch, parts)
        torch.testing.assert_close(value, whole[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, whole[1], rtol=1e-12, atol=1e-12)
        assert metrics == pytest.approx(whole[2], rel=1e-12, abs=1e-12)


def test_cross_entropy_is_that_of_torch_over_the_answers(batch):
    loss = Objective((NegativeLogLikelihood(),))
    value, _, metrics = objective_value(loss, batch, [[0, 1, 2], [3, 4, 5]])
    mask = batch.token_fields["loss_mask"]
    logits = TableModel(VOCABULARY).table[batch.input_ids]
    expected = torch.nn.functional.cross_entropy(logits[mask], batch.targets[mask]).detach()
    torch.testing.assert_close(value, expected)
    assert metrics["cross_entropy"] == pytest.approx(float(expected))


def test_the_clipped_loss_is_ppos_formula(batch):
    term = ClippedPolicyTerm(eps_clip=0.1, eps_clip_higher=0.3)
    value, _, metrics = objective_value(Objective((term,)), batch, [[0, 1, 2, 3, 4, 5]])
    new, fields = TableModel(VOCABULARY)(batch)["logprobs"].detach(), batch.token_fields
    losses, clipped = [], 0
    for t in torch.nonzero(fields["loss_mask"])[:, 0].tolist():
        ratio, advantage = float((new[t] - fields["logprobs"][t]).exp()), float(fields["advantages"][t])
        bounded = min(max(ratio, 0.9), 1.3)
        losses.append(-min(ratio * advantage, bounded * advantage))
        clipped += bounded * advantage < ratio * advantage
    assert float(value) == pytest.approx(sum(losses) / len(losses))
    assert metrics["clip_fraction"] == pytest.approx(clipped / len(losses))


def single_token(ratio: float, advantage: float) -> tuple[Batch, dict[str, torch.Tensor]]:
    """One trained token whose policy is ``ratio`` times the one that sampled."""
    fields = {
        "loss_mask": torch.tensor([True, False]),
        "advantages": torch.tensor([advantage, 0.0]),
        "logprobs": torch.zeros(2),
    }
    batch = Batch(torch.zeros(2, dtype=torch.int64), (2,), fields)
    return batch, {"logprobs": torch.tensor([ratio, 1.0]).log()}


@pytest.mark.parametrize(("ratio", "advantage", "expected"), [(5.0, -1.0, 3.0), (2.0, -1.0, 2.0), (5.0, 1.0, -1.2)])
def test_dual_clip_bounds_only_the_loss_of_negative_advantages(ratio, advantage, expected):
    batch, outputs = single_token(ratio, advantage)
    sums = Objective((ClippedPolicyTerm(c_clip=3.0),))(outputs, batch)
    assert float(sums.terms["token"]) == pytest.approx(expected)
    assert float(sums.metrics["dual_clip_fraction"][1]) == (1.0 if ratio == 5.0 and advantage < 0 else 0.0)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_aggregations_are_their_published_means(batch, name):
    value, _, _ = objective_value(
        Objective((NegativeLogLikelihood(),), AGGREGATIONS[name]), batch, [[0, 1, 2, 3, 4, 5]]
    )
    rows = [row.detach() for row in sequence_rows(batch, -TableModel(VOCABULARY)(batch)["logprobs"])]
    trained = [row for row in rows if len(row)]
    expected = {
        "token": torch.cat(rows).mean(),
        "sequence": torch.stack([row.mean() for row in trained]).mean(),
        "constant": torch.cat(rows).sum() / (len(rows) * 8),
    }[name]
    torch.testing.assert_close(value, expected)


def test_the_entropy_bonus_raises_entropy_and_a_zero_coefficient_only_reports(batch):
    _, gradient, metrics = objective_value(Objective((EntropyTerm(0.5),)), batch, [[0, 1, 2, 3, 4, 5]])
    table = TableModel(VOCABULARY).table
    with torch.no_grad():
        table -= 0.1 * gradient
    assert metrics["entropy"] > 0
    mask = batch.token_fields["loss_mask"]
    before, after = TableModel(VOCABULARY).table.log_softmax(-1), table.log_softmax(-1)
    entropy = [-(p.exp() * p).sum(-1)[batch.input_ids][mask].mean() for p in (before, after)]
    assert entropy[1] > entropy[0]
    reported = Objective((EntropyTerm(0.0), NegativeLogLikelihood()))
    plain = Objective((NegativeLogLikelihood(),))
    torch.testing.assert_close(
        objective_value(reported, batch, [[0, 2, 3]])[1], objective_value(plain, batch, [[0, 2, 3]])[1]
    )


@given(st.floats(-20, 20), st.floats(-20, 20))
def test_k2_and_k3_are_never_negative_and_zero_where_both_agree(a, b):
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    for estimator in ("k2", "k3"):
        assert kl_estimate(x, y, estimator) >= 0
        assert kl_estimate(x, x, estimator) == 0
    assert kl_estimate(x, y, "k1") == x - y


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=2, max_size=6))
def test_k1_and_k3_are_unbiased_on_any_distribution(logits):
    p, q = torch.tensor(logits, dtype=torch.float64).T.log_softmax(-1)
    exact = (p.exp() * (p - q)).sum()
    for estimator in ("k1", "k3"):
        expectation = (p.exp() * kl_estimate(p, q, estimator)).sum()
        torch.testing.assert_close(expectation, exact, rtol=1e-9, atol=1e-12)


LOGITS = torch.tensor([0.3, -1.0, 0.8, 1.7], dtype=torch.float64)
REFERENCE = torch.tensor([0.1, 0.2, -0.5, 0.4], dtype=torch.float64).log_softmax(-1)


def kl_of_distributions(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p.exp() * (p - q)).sum()


EXPECTED_OBJECTIVE = {
    "k1": lambda p: 0 * p.sum(),
    "k2": lambda p: kl_of_distributions(p, REFERENCE),
    "k3": lambda p: kl_of_distributions(REFERENCE, p),
}
"""Estimator -> the function of the policy p whose gradient it has in expectation as a loss term."""


@pytest.mark.parametrize("estimator", EXPECTED_OBJECTIVE)
def test_the_expected_gradient_of_a_kl_term_is_the_documented_one(estimator):
    """Over all outcomes of a categorical policy, weighted by their probabilities: exact, no samples."""
    logits = LOGITS.clone().requires_grad_()
    term = KLTerm(1.0, estimator)
    p = logits.log_softmax(-1)
    batch = Batch(torch.zeros(4, dtype=torch.int64), (4,), {"ref_logprobs": REFERENCE})
    values = term({"logprobs": p}, batch).values
    sampled = torch.autograd.grad((p.detach().exp() * values).sum(), logits, retain_graph=True)[0]
    exact = torch.autograd.grad(EXPECTED_OBJECTIVE[estimator](p), logits)[0]
    torch.testing.assert_close(sampled, exact, rtol=1e-12, atol=1e-15)


def test_the_kls_in_both_directions_have_different_gradients_away_from_the_reference():
    gradients = []
    for estimator in ("k2", "k3"):
        logits = LOGITS.clone().requires_grad_()
        EXPECTED_OBJECTIVE[estimator](logits.log_softmax(-1)).backward()
        gradients.append(logits.grad)
    assert (gradients[0] - gradients[1]).abs().max() > 0.01


def test_what_stands_outside_the_mask_cannot_reach_loss_or_gradient(batch):
    mask = batch.token_fields["loss_mask"]
    loss = Objective((ClippedPolicyTerm(), KLTerm(0.1)))
    broken = batch.with_fields({name: torch.where(mask, batch.token_fields[name], torch.inf) for name in ("logprobs",)})
    value, gradient, _ = objective_value(loss, broken, [[0, 1, 2, 3, 4, 5]])
    expected = objective_value(loss, batch, [[0, 1, 2, 3, 4, 5]])
    torch.testing.assert_close(value, expected[0])
    assert torch.isfinite(gradient).all()
