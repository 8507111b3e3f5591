"""Replaces values outside the loss mask before a loss reads them.

Masking the result of a loss is too late. It fixes the forward value but not the gradient: autograd multiplies the zero
gradient of a masked position by the infinite derivative of ``exp`` or ``log``, and the resulting NaN spreads to the
whole gradient. ``torch.where`` on the inputs gives masked positions a constant value and a gradient of exactly zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.packed import OutputName
from archon_rl.losses.aggregation import LOSS_MASK

NEUTRAL = 0.0
"""Value at masked positions: with equal log-probabilities the ratio is 1 and the KL 0, and sums are unchanged."""


def mask_values(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` [T, ...] with ``NEUTRAL`` outside ``mask`` (bool [T]), even where they are NaN.

    The gradient outside the mask is exactly 0, even if the incoming gradient is not finite.
    """
    rows = mask.view(-1, *[1] * (values.ndim - 1))
    return torch.where(rows, values, torch.full((), NEUTRAL, dtype=values.dtype, device=values.device))


def mask_inputs(outputs: Mapping[OutputName, Tensor], batch: Batch) -> tuple[dict[OutputName, Tensor], Batch]:
    """Model outputs and batch with floating-point values outside the loss mask set to ``NEUTRAL``.

    ``Objective`` calls this once for all of its terms; any other ``contracts.loss.Loss`` must call it before it reads
    values. Integer fields stay as they are, since an index has no neutral value, and so do sequence fields.

    Args:
        outputs: name -> [T, ...].
        batch: must have the token field ``loss_mask``.
    """
    mask = batch.token_fields[LOSS_MASK]
    return {name: mask_values(value, mask) for name, value in outputs.items()}, mask_fields(batch)


def mask_fields(batch: Batch) -> Batch:
    """``batch`` with its floating-point token fields ``NEUTRAL`` outside the loss mask."""
    mask = batch.token_fields[LOSS_MASK]
    fields = {name: mask_values(v, mask) for name, v in batch.token_fields.items() if v.is_floating_point()}
    return batch.with_fields(fields)
