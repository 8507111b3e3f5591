"""Small batches with given probabilities, and a policy loss at each of their tokens."""

from __future__ import annotations

import torch

from archon_core.contracts.batch import Batch

DTYPE = torch.float64


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=DTYPE)


def batch_of(lengths: tuple[int, ...] = (1,), **fields) -> Batch:
    """Trained tokens only; probabilities are given, log-probabilities stored."""
    logs = {
        "logprobs": fields.pop("behave", None),
        "prox_logprobs": fields.pop("prox", None),
    }
    n_tokens = sum(lengths)
    token_fields = {
        "loss_mask": torch.ones(n_tokens, dtype=torch.bool),
        **{name: tensor(values).log() for name, values in logs.items() if values is not None},
        **{name: v if isinstance(v, torch.Tensor) else tensor(v) for name, v in fields.items()},
    }
    return Batch(torch.zeros(n_tokens, dtype=torch.int64), lengths, token_fields)


def losses_and_gradients(term, probabilities, batch) -> tuple[list[float], list[float]]:
    """Loss per token, and the gradient of their sum with respect to the log-probabilities."""
    logprobs = tensor(probabilities).log().requires_grad_()
    values = term({"logprobs": logprobs}, batch).values
    values.sum().backward()
    return values.tolist(), logprobs.grad.tolist()
