"""Choices that were made before, and the choices made now: inference engines route a little differently, so that a
policy is trained on the experts that its rollout took (routing replay)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from archon_core.contracts.moe import MoESettings
from archon_core.errors import DataError
from archon_moe.local_tokens import LocalTokens


def recorded_choice(own: LocalTokens, layer: int, settings: MoESettings) -> Tensor | None:
    """int [real tokens, K], what ``packed.experts`` says of a layer; ``None`` without.

    Raises:
        DataError: it is of another number of layers or experts.
    """
    given = own.packed.experts
    if given is None:
        return None
    found = tuple(given.shape)
    if given.ndim != 3 or found[1] <= layer or found[2] != settings.top_k:
        raise DataError(
            f"recorded experts: found a tensor of shape {list(found)}; layer {layer} needs [tokens, layers, "
            f"{settings.top_k}]; record them with this model, or leave them out"
        )
    recorded = own.own_rows(given)[:, layer]
    if recorded.numel() and int(recorded.max()) >= settings.n_experts:
        raise DataError(
            f"recorded experts: found {int(recorded.max())} in layer {layer}; allowed are 0 to {settings.n_experts - 1}"
            ", and -1 where the router shall choose; record them with this model, or leave them out"
        )
    return recorded


def choice_record(experts: Tensor, n_tokens: int) -> Tensor:
    """int16 [n_tokens, K] of the choices [real tokens, K]; -1 for padding."""
    return functional.pad(experts.to(torch.int16), (0, 0, 0, n_tokens - experts.shape[0]), value=-1)
