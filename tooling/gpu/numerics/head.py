"""The fused head against log-softmax in float64: log-probabilities, entropies and both gradients.

Legend: T tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from unittest import mock

import torch

from archon_engine.nn.head import linear_logprobs_and_entropy
from gpu.numerics.comparing import relative_error
from gpu.numerics.tolerances import BF16_KERNEL, FP32
from gpu.records import Check, Context, Outcome

TEMPERATURE = 0.7
SIZES = {"cuda": (3001, 512, 151_936), "cpu": (301, 64, 5001)}
"""(T, H, V): several chunks of tokens on either device, the last one smaller."""

CPU_CHUNK_BYTES = 2**20
"""In place of the engine's own, for the small sizes."""


def checks(context: Context) -> Iterator[Check]:
    """In fp32 and in bf16."""
    for name, dtype, bound in (("fp32", torch.float32, FP32), ("bf16", torch.bfloat16, BF16_KERNEL)):
        yield Check(f"head-{name}", partial(fused, context, dtype, bound))


def fused(context: Context, dtype: torch.dtype, bound: float) -> Outcome:
    """Weights of tokens differ, some positions predict nothing, and the loss has both outputs."""
    tokens, hidden, vocabulary = SIZES[context.device]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, hidden, generator=generator).to(context.device, dtype).requires_grad_()
    weight = torch.randn(vocabulary, hidden, generator=generator).mul_(2 * hidden**-0.5)
    weight = weight.to(context.device, dtype).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator).to(context.device)
    targets[::7] = -1
    weights = (0.5 + torch.rand(tokens, generator=generator)).to(context.device)

    with mock.patch("archon_engine.nn.head.CHUNK_BYTES", CPU_CHUNK_BYTES):
        logprobs, entropy = linear_logprobs_and_entropy(x, weight, targets, TEMPERATURE)
        found = torch.autograd.grad((weights * (0.3 * entropy - logprobs)).sum(), (x, weight))

    # On the same device, in float64 and chunk by chunk: [T, V] would not fit.
    exact_x, exact_weight = (value.detach().double().requires_grad_() for value in (x, weight))
    gradients = [torch.zeros_like(exact_x), torch.zeros_like(exact_weight)]
    expected_logprobs, expected_entropy = [], []
    for part in torch.arange(tokens, device=context.device).split(256):
        log_p = torch.log_softmax(exact_x[part] @ exact_weight.T / TEMPERATURE, -1)
        has_target = targets[part] >= 0
        chosen = torch.where(has_target, log_p.gather(1, targets[part].clamp(min=0)[:, None])[:, 0], 0.0)
        spread = torch.where(has_target, -(log_p.exp() * log_p).sum(-1), 0.0)
        loss = (weights[part].double() * (0.3 * spread - chosen)).sum()
        for total, gradient in zip(gradients, torch.autograd.grad(loss, (exact_x, exact_weight)), strict=True):
            total += gradient
        expected_logprobs.append(chosen.detach())
        expected_entropy.append(spread.detach())
    measured = {
        "logprobs": relative_error(logprobs, torch.cat(expected_logprobs)),
        "entropy": relative_error(entropy, torch.cat(expected_entropy)),
        "gradient of hidden states": relative_error(found[0], gradients[0]),
        "gradient of weight": relative_error(found[1], gradients[1]),
    }
    return Outcome(measured, dict.fromkeys(measured, bound))
