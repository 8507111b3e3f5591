"""A model that is one table of logits, and what an engine computes of it: the oracle's side of tests of losses."""

from __future__ import annotations

import torch

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import Loss


class TableModel:
    """Logits per token id, in float64: enough for gradients to flow through log-probabilities, entropy and values."""

    def __init__(self, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.table = torch.randn(vocabulary, vocabulary, generator=generator, dtype=torch.float64, requires_grad=True)

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        logprobs = self.table[batch.input_ids].log_softmax(-1)
        chosen = logprobs.gather(1, batch.targets.clamp(min=0)[:, None])[:, 0]
        entropy, values = -(logprobs.exp() * logprobs).sum(-1), self.table[batch.input_ids].mean(-1)
        return {"logprobs": chosen, "entropy": entropy, "values": values}


def evaluate(
    model: TableModel, loss: Loss, batch: Batch, parts: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """The objective, its gradient by the table and the metrics, from the parts of a batch."""
    weights = loss.weights(batch)
    total, metrics = torch.zeros((), dtype=torch.float64), {}
    for part in parts:
        micro_batch = batch.select(part)
        sums = loss(model(micro_batch), micro_batch)
        for unit, term in sums.terms.items():
            total = total + term / weights[unit]
        for name, (unit, value) in sums.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + float(value / weights[unit])
    (gradient,) = torch.autograd.grad(total, model.table)
    return total.detach(), gradient, metrics
