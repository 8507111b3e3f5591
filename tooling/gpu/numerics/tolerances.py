"""How far the device may be from the reference, and why."""

from __future__ import annotations

FP32 = 1e-4
"""Relative to a tensor's largest magnitude. fp32 rounds at 6e-8; sums of a few hundred terms in another order differ by
1e-6 to 1e-5 after a few layers and back. TF32, at 5e-4 per product, is off and would show."""

BF16_LOSS = 2e-2
BF16_NORM = 5e-2
BF16_GRADIENTS = 1.5e-1
"""bf16 keeps 8 bits: weights and activations are off by up to 4e-3 each. Errors of the terms of a sum are independent
and grow with its root, but a gradient passes all layers twice: a few per cent of a tensor's largest entry are left, and
more in norms' weights, which sum over all tokens with cancellation. A wrong scale, a lost micro-batch or a missing term
is off by half or more."""

BF16_KERNEL = 3e-2
"""Of one kernel: inputs rounded alike on both sides, so what differs is the rounding of its result and of the
probabilities, or hidden values, inside it."""

FP32_LOGPROBS = 1e-3
BF16_LOGPROBS = 1e-1
"""Largest difference in nats between a decode step and a training pass, which round at different places. Logits are of
order 10, so a nat here is a tenth of their size."""
