"""Expert load: what a block reports of each micro-batch, and the metrics of a step.

Legend: T real tokens of this rank, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from archon_core.contracts.moe import MoESettings
from archon_moe.balancing import Losses, normalised_scores
from archon_moe.kernels.order import count_each
from archon_moe.router import Routing


@torch.no_grad()
def load_report(routing: Routing, losses: Losses, settings: MoESettings) -> dict[str, Tensor]:
    """Sums over this rank's real tokens: int64 ``counts`` [E], all others float64 scalars."""
    p = normalised_scores(routing.scores, settings)
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
    """Metrics of a step; all but the first are means over layers.

    - ``expert_load_max``: the largest load of any expert in any layer, as a multiple of the mean load of its layer
    - ``expert_load_max_over_mean``: the largest load of a layer, as a multiple of its mean
    - ``expert_load_min_over_mean``: the smallest load of a layer, as a multiple of its mean
    - ``experts_unused``: fraction of experts that received no token
    - ``router_entropy``: entropy of a token's normalised scores, in nats
    - ``aux_loss``, ``z_loss``: the losses before their coefficients

    Args:
        totals: layer -> its reports, summed over all tokens of the step on all ranks.
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
