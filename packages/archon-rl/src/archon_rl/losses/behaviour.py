"""The behaviour weight of the decoupled loss, and rejection sampling on it.

The rollout sampled with pi_behave, which differs from pi_prox, the trainer's policy at the start of the step: it may be
older, and it is computed by another engine. The decoupled objective (arXiv:2110.00641; for asynchronous
training of language models, arXiv:2505.24298, eq. 5) corrects this with the importance weight, per token,

    w_t = pi_prox(y_t) / pi_behave(y_t) = exp(x_t),    x_t = log pi_prox(y_t) - log pi_behave(y_t).

Rejection sampling bounds w, or drops what lies too far apart. A metric is computed for every token:

- ``ratio``: w_t. IcePop (arXiv:2510.18855, eq. 1 and 2) masks tokens by it, TIS (truncated importance sampling) clamps
  it.
- ``kl_k1``, ``kl_k2``, ``kl_k3``: x_t, x_t^2 / 2 and exp(-x_t) - 1 + x_t, as ``losses.kl`` defines them for pi_prox
  relative to pi_behave.
- ``binary_kl``: with p = pi_prox(y_t) and q = pi_behave(y_t), the larger of kl(p, q) and kl(q, p), where
  kl(p, q) = p log(p / q) + (1 - p) log((1 - p) / (1 - q)) is the KL of "this token or another one" (KPop).

At level ``token``, every token is judged by its metric. At level ``sequence``, all tokens of a sequence are judged by
the sum, mean or maximum of its trained tokens' metrics. Ratios are summed and averaged in log space: their sum is the
ratio of the whole sequence's probabilities, exp(sum x_t), and their mean is exp(mean x_t), the geometric mean. With
``ratio`` at level ``sequence`` the geometric mean is also the weight of every token, as in AReaL; importance sampling
of whole sequences (https://richardli.xyz/rl-collapse) weighs by their ratio instead.

The action ``mask`` sets the weight to 0 outside the bounds; the token still counts in the denominator of the loss, so
the others keep their share. ``clamp`` limits the weight to the bounds, at tokens or sequences whose metric is outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_rl.losses.aggregation import LOSS_MASK, trained_tokens
from archon_rl.losses.kl import kl_estimate
from archon_rl.losses.masking import mask_values

Level = Literal["token", "sequence"]
Action = Literal["mask", "clamp"]
Metric = Literal["ratio", "kl_k1", "kl_k2", "kl_k3", "binary_kl"]
SequenceAggregation = Literal["sum", "mean", "max"]

SMALLEST_PROBABILITY = 1e-8
"""Probabilities of the binary KL stay this far from 0 and 1, where its logarithms end."""


@dataclass(frozen=True)
class RejectionSampling:
    """Bounds of the behaviour weight; see the module's docstring.

    Attributes:
        level: judge tokens or whole sequences.
        action: ``clamp`` needs the metric ``ratio``.
        metric: what the bounds limit.
        agg: how a sequence's metric follows from its tokens'.
        upper: largest allowed metric.
        lower: smallest allowed metric; ``None`` for none (0 with ``clamp``).
    """

    level: Level = "token"
    action: Action = "mask"
    metric: Metric = "ratio"
    agg: SequenceAggregation = "mean"
    upper: float = 5.0
    lower: float | None = None

    def accepted(self, proximal: Tensor, behaviour: Tensor, batch: Batch) -> Tensor:
        """bool [T]: true where the metric is within the bounds; log-probabilities [T] of both policies."""
        in_logs = self.metric == "ratio"
        values = proximal - behaviour if in_logs else self._metric(proximal, behaviour)
        if self.level == "sequence":
            values = self._over_sequences(values, batch)
        metric = values.exp() if in_logs else values
        accepted = metric <= self.upper
        return accepted if self.lower is None else accepted & (metric >= self.lower)

    def _metric(self, proximal: Tensor, behaviour: Tensor) -> Tensor:
        match self.metric:
            case "kl_k1":
                return kl_estimate(proximal, behaviour, "k1")
            case "kl_k2":
                return kl_estimate(proximal, behaviour, "k2")
            case "kl_k3":
                return kl_estimate(proximal, behaviour, "k3")
            case "binary_kl":
                return torch.maximum(binary_kl(proximal, behaviour), binary_kl(behaviour, proximal))
        raise AssertionError(f"unknown metric {self.metric!r}")

    def _over_sequences(self, values: Tensor, batch: Batch) -> Tensor:
        """[T]: every token has the aggregate over the trained tokens of its sequence."""
        values = mask_values(values, batch.token_fields[LOSS_MASK])
        match self.agg:
            case "sum":
                return batch.sum_per_sequence(values)[batch.sequence_ids]
            case "mean":
                return mean_over_sequence(values, batch)
        lowest = torch.where(batch.token_fields[LOSS_MASK], values, -torch.inf)
        start = values.new_full((len(batch),), -torch.inf)
        return start.scatter_reduce(0, batch.sequence_ids, lowest, "amax")[batch.sequence_ids]


@dataclass(frozen=True)
class BehaviourWeight:
    """The decoupled loss's weight per token.

    Attributes:
        rejection: bounds; ``None`` for the plain weight w.
    """

    rejection: RejectionSampling | None = None

    def __call__(self, proximal: Tensor, behaviour: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weight [T] for log-probabilities [T] of both policies, without gradient; and metrics [T]."""
        proximal, behaviour = proximal.detach(), behaviour.detach()
        rule, log_weight = self.rejection, proximal - behaviour
        if rule is None:
            weight = log_weight.exp()
            return weight, {"behave_weight": weight}
        if rule.level == "sequence" and rule.metric == "ratio":
            log_weight = mean_over_sequence(log_weight, batch)
        weight = log_weight.exp()
        accepted = rule.accepted(proximal, behaviour, batch)
        if rule.action == "clamp":
            clamped = torch.where(accepted, weight, weight.clamp(rule.lower or 0.0, rule.upper))
            return clamped, {"behave_weight": clamped, "behave_clamped": (clamped != weight).to(weight.dtype)}
        weight = torch.where(accepted, weight, 0)
        return weight, {"behave_weight": weight, "behave_masked": (~accepted).to(weight.dtype)}


def binary_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL of Bernoulli(p) relative to Bernoulli(q), elementwise in float64, from the logarithms of p and q."""
    p, q = (log.double().exp().clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY) for log in (log_p, log_q))
    return p * (p.log() - q.log()) + (1 - p) * (torch.log1p(-p) - torch.log1p(-q))


def mean_over_sequence(values: Tensor, batch: Batch) -> Tensor:
    """[T]: every token has the mean of ``values`` [T], which are 0 outside the loss mask, over its sequence."""
    return (batch.sum_per_sequence(values) / trained_tokens(batch).clamp(min=1))[batch.sequence_ids]
