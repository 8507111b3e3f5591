"""Normalisation of rewards and advantages over batches and groups.

GRPO (arXiv:2402.03300, section 4.1.2), Dr.GRPO (arXiv:2503.20783, section 3.2: no deviation), RLOO (arXiv:2402.14740,
section 2.3: leave-one-out mean), LitePPO (arXiv:2508.08221, eq. 5 and 6: mean of the group, deviation of the batch),
REINFORCE++ (arXiv:2501.03262, eq. 5: the batch; in its baseline form after the group's mean, eq. 6 and 7), OPO and
MaxRL differ only in this.

- OPO (arXiv:2505.23585) weighs the mean of a group by the lengths of its samples, sum_i n_i r_i / sum_i n_i: the
  baseline of least variance if the norm of a sample's gradient grows with its length.
- MaxRL (arXiv:2602.02710, algorithm 1) divides by the mean of the group instead of its deviation, (r_i - mean) / mean,
  and gives no advantage where the mean is not positive. In expectation this is the gradient of the log-likelihood of
  success, its series in the probability of failure truncated after n - 1 terms for groups of n (theorem 5).

Legend: N values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Level = Literal["batch", "group"]


@dataclass(frozen=True)
class Normalisation:
    """``(x - mean) / (scale + eps)``, mean and scale each over the batch, over groups, or left out.

    Attributes:
        mean_level: level of the mean; ``None`` for no centring.
        std_level: level of the scale; ``None`` for no scaling.
        leave_one_out: leave the value itself out of its mean; the mean of no values is 0.
        unbiased: divide by n - 1 instead of n.
        eps: added to the scale.
        mean_weights: weigh all values equally, or by their lengths (OPO).
        scale: the standard deviation around the mean of ``std_level``, 1 for a single value; or that mean itself
            (MaxRL).
    """

    mean_level: Level | None = "batch"
    std_level: Level | None = "batch"
    leave_one_out: bool = False
    unbiased: bool = True
    eps: float = 1e-5
    mean_weights: Literal["equal", "length"] = "equal"
    scale: Literal["deviation", "mean"] = "deviation"


def normalise(
    values: Tensor, groups: Tensor, how: Normalisation, mask: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    """Normalise ``values`` [N] with group indices ``groups`` (int64 [N]).

    Values outside ``mask`` (bool [N]) do not count in the statistics and become 0. Statistics are computed in float64;
    the result has the dtype of ``values``. ``lengths`` [N] are the weights of the mean with ``mean_weights="length"``.
    """
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    ids = {"batch": torch.zeros_like(groups), "group": groups}
    x = torch.where(mask, values, 0).double()
    counted = mask.double()
    result = x
    if how.mean_level is not None:
        weights = counted
        if how.mean_weights == "length":
            assert lengths is not None, "a mean weighted by length needs the lengths"
            weights = counted * lengths.double()
        result = x - _mean(x, weights, ids[how.mean_level], how.leave_one_out)
    if how.std_level is not None:
        result = result / (_scale(x, counted, ids[how.std_level], how) + how.eps)
    return torch.where(mask, result, 0).to(values.dtype)


def _scale(x: Tensor, counted: Tensor, ids: Tensor, how: Normalisation) -> Tensor:
    if how.scale == "deviation":
        return _deviation(x, counted, ids, how.unbiased)
    mean = _mean(x, counted, ids, leave_one_out=False)
    return torch.where(mean > 0, mean, torch.inf)


def _sum_by(ids: Tensor, values: Tensor) -> Tensor:
    """Each value's group sum, [N]."""
    n_groups = int(ids.max()) + 1 if len(ids) else 0
    return values.new_zeros(n_groups).index_add(0, ids, values)[ids]


def _mean(x: Tensor, weights: Tensor, ids: Tensor, leave_one_out: bool) -> Tensor:
    total, weight = _sum_by(ids, x * weights), _sum_by(ids, weights)
    if leave_one_out:
        total, weight = total - x * weights, weight - weights
    return torch.where(weight > 0, total / weight, 0)


def _deviation(x: Tensor, counted: Tensor, ids: Tensor, unbiased: bool) -> Tensor:
    centred = (x - _mean(x, counted, ids, leave_one_out=False)) * counted
    count = _sum_by(ids, counted)
    variance = _sum_by(ids, centred.square()) / (count - (1 if unbiased else 0)).clamp(min=1)
    # One value says nothing about a deviation. With 0, dividing by eps would blow it up, unless it is its own mean.
    return torch.where(count > 1, variance.sqrt(), 1)
