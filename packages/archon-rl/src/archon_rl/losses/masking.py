"""Replaces everything outside the loss mask before a loss computes with it.

Masking only a loss's result is too late: the forward value 0 * inf is avoided, the gradient is not, because autograd
multiplies the zero that comes back by the infinite derivative of ``exp`` or ``log``, and one NaN makes the whole
gradient NaN. ``torch.where`` on the inputs gives masked positions a constant and a gradient of exactly zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.packed import OutputName
from archon_rl.losses.aggregation import LOSS_MASK

NEUTRAL = 0.0
"""Value at masked positions: equal log-probabilities have ratio 1 and KL 0, and a sum over a sequence is unchanged."""


def mask_values(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` [T, ...] with ``NEUTRAL`` outside ``mask`` (bool [T]), whatever stands there, NaN included.

    The gradient is exactly 0 outside the mask, whatever comes back from later functions.
    """
    rows = mask.view(-1, *[1] * (values.ndim - 1))
    return torch.where(rows, values, torch.full((), NEUTRAL, dtype=values.dtype, device=values.device))


def mask_inputs(outputs: Mapping[OutputName, Tensor], batch: Batch) -> tuple[dict[OutputName, Tensor], Batch]:
    """Model outputs and batch as a loss may use them: floating-point values outside the loss mask are ``NEUTRAL``.

    ``Objective`` calls this once for all of its terms. A ``protocols.Loss`` of another kind calls it first.
    Integer fields are left alone, since an index has no neutral value; so are sequence fields, which belong to the
    sequence whether or not its tokens are trained on.

    Args:
        outputs: name -> [T, ...].
        batch: has the token field ``loss_mask``.
    """
    mask = batch.token_fields[LOSS_MASK]
    return {name: mask_values(value, mask) for name, value in outputs.items()}, mask_fields(batch)


def mask_fields(batch: Batch) -> Batch:
    """``batch`` with its floating-point token fields ``NEUTRAL`` outside the loss mask."""
    mask = batch.token_fields[LOSS_MASK]
    fields = {name: mask_values(v, mask) for name, v in batch.token_fields.items() if v.is_floating_point()}
    return batch.with_fields(fields)
