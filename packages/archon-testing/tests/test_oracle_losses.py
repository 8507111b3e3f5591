"""The oracle's losses ignore outputs at positions that the mask does not count, whatever the outputs are."""

import math

import pytest
import torch

from archon_testing.batches import MASK, make_batch
from archon_testing.losses import oracle_loss


@pytest.mark.parametrize("extreme", [1e4, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("critic", [False, True])
def test_no_output_at_masked_positions_reaches_the_oracles_loss_gradient_or_metrics(critic, extreme):
    batch, loss = make_batch(0, vocab_size=32, longest=64, dtype=torch.float64, seed=1), oracle_loss(critic=critic)
    counted = batch.token_fields[MASK] > 0
    results = []
    for fill in (0.0, extreme):
        outputs = {name: torch.where(counted, -0.5, fill).double().requires_grad_() for name in loss.request.names}
        sums = loss(outputs, batch)
        sum(sums.terms.values()).backward()
        results.append((sums, [output.grad for output in outputs.values()]))
    (clean, clean_gradients), (poisoned, poisoned_gradients) = results
    assert {unit: term.item() for unit, term in clean.terms.items()} == {
        unit: term.item() for unit, term in poisoned.terms.items()
    }
    assert clean.metrics == poisoned.metrics
    for expected, gradient in zip(clean_gradients, poisoned_gradients, strict=True):
        assert torch.equal(gradient, expected)
