"""What blocks report of a batch, and what is worth logging of it.

Legend: T real tokens of this rank, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from archon_core.contracts.moe import MoESettings
from archon_moe.balancing import Losses, shares
from archon_moe.kernels.order import count_each
from archon_moe.router import Routing


@torch.no_grad()
def report_of(routing: Routing, losses: Losses, settings: MoESettings) -> dict[str, Tensor]:
    """Sums over this rank's tokens: int64 ``counts`` [E], the rest float64 scalars."""
    p = shares(routing.scores, settings)
    entropy = torch.special.entr(p).sum(dtype=torch.float64)
    report = {
        "counts": count_each(routing.experts, settings.n_experts),
        "tokens": torch.full_like(entropy, routing.experts.shape[0]),
        "entropy": entropy,
    }
    for name, loss in (("aux_loss", losses.balance), ("z_loss", losses.z)):
        if loss is not None:
            report[name] = loss.detach().to(torch.float64)
    return report


def load_metrics(totals: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
    """Metrics of a step, means over layers but for the first.

    - ``expert_load_max``: the largest load of any expert of any layer, in multiples of its layer's mean
    - ``expert_load_max_over_mean``: each layer's largest
    - ``expert_load_min_over_mean``: each layer's smallest
    - ``experts_unused``: share of experts that no token went to
    - ``router_entropy``: of a token's scores, in nats
    - ``aux_loss``, ``z_loss``: without their coefficients

    Args:
        totals: layer -> reports, summed over all tokens of the step.
    """
    largest, smallest, unused, entropy = [], [], [], []
    losses: dict[str, list[float]] = {}
    for report in totals.values():
        n_tokens = float(report["tokens"])
        if not n_tokens:
            continue
        load = report["counts"].to(torch.float64)
        relative = load / load.mean()
        largest.append(float(relative.max()))
        smallest.append(float(relative.min()))
        unused.append(float((load == 0).to(torch.float64).mean()))
        entropy.append(float(report["entropy"]) / n_tokens)
        for name in ("aux_loss", "z_loss"):
            if name in report:
                losses.setdefault(name, []).append(float(report[name]))
    if not largest:
        return {}
    metrics = {
        "expert_load_max": max(largest),
        "expert_load_max_over_mean": _mean(largest),
        "expert_load_min_over_mean": _mean(smallest),
        "experts_unused": _mean(unused),
        "router_entropy": _mean(entropy),
    }
    return metrics | {name: _mean(values) for name, values in losses.items()}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
