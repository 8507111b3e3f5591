"""Routing replay: train on the experts that the rollout chose, and record the experts chosen here.

An inference engine rounds differently, so its router can choose other experts for the same token; the policy would then
be trained as another model than the one that was sampled (arXiv:2510.11370).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from archon_core.contracts.moe import MoESettings
from archon_core.errors import DataError
from archon_moe.local_tokens import LocalTokens


def recorded_experts(local: LocalTokens, layer: int, settings: MoESettings) -> Tensor | None:
    """int [real tokens, K], the experts that ``packed.experts`` prescribes for a layer; ``None`` without a record.

    Raises:
        DataError: the record does not have this layer, this K or these experts.
    """
    given = local.packed.experts
    if given is None:
        return None
    found = tuple(given.shape)
    if given.ndim != 3 or found[1] <= layer or found[2] != settings.top_k:
        raise DataError(
            f"recorded experts: found a tensor of shape {list(found)}; layer {layer} needs [tokens, layers, "
            f"{settings.top_k}]; record them with this model, or leave them out"
        )
    recorded = local.local_rows(given)[:, layer]
    if recorded.numel() and int(recorded.max()) >= settings.n_experts:
        raise DataError(
            f"recorded experts: found {int(recorded.max())} in layer {layer}; allowed are 0 to {settings.n_experts - 1}"
            ", and -1 to let the router choose; record them with this model, or leave them out"
        )
    return recorded


def experts_to_record(experts: Tensor, n_tokens: int) -> Tensor:
    """``experts`` [real tokens, K] as int16 [n_tokens, K], with -1 for padding."""
    return functional.pad(experts.to(torch.int16), (0, 0, 0, n_tokens - experts.shape[0]), value=-1)
