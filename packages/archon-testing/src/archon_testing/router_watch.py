"""What routers do while one process computes a reference: whether the choice of experts could fall otherwise, and
whether some expert goes without tokens.

Two experts with nearly equal logits may change places by rounding, and a layout that is right would then differ. So a
reference is only taken of weights with which all choices are clear; weights are drawn again where they are not.

Legend: T tokens, E experts, K experts per token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

LEAST_MARGIN = 1e-4
"""Least distance of the last logit that is chosen from the first that is not: far above the rounding of fp32."""


@dataclass
class RouterWatch:
    """What was seen.

    Attributes:
        margin: the smallest of all tokens; infinite where there are no experts.
        n_passes: training passes of blocks of experts.
        n_with_idle: those of them in which some expert got no token.
    """

    margin: float = math.inf
    n_passes: int = 0
    n_with_idle: int = 0

    @property
    def is_clear(self) -> bool:
        """Whether the passes can be compared with those of other layouts, and try experts without tokens."""
        return self.margin > LEAST_MARGIN and (self.n_passes == 0 or self.n_with_idle > 0)

    @torch.no_grad()
    def look(self, router: nn.Module, x: Tensor, chosen: Tensor, *, is_training: bool) -> None:
        """Take in one pass: ``x`` [T, hidden], ``chosen`` int [T, K], -1 for padding."""
        real = chosen[:, 0] >= 0
        x, chosen = x.detach()[real], chosen[real].long()
        logits = x.double() @ router.weight.detach().double().T
        bias = getattr(router, "choice_bias", None)
        if bias is not None:
            logits = logits.sigmoid() + bias.detach().double()
        is_chosen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, chosen, True)
        if not is_chosen.all() and len(chosen):
            inside = logits.masked_fill(~is_chosen, math.inf).amin(1)
            outside = logits.masked_fill(is_chosen, -math.inf).amax(1)
            # Below zero where the choice is limited to groups, which no margin between experts tells.
            margins = (inside - outside)[inside > outside]
            self.margin = min([self.margin, *margins.tolist()])
        if is_training:
            self.n_passes += 1
            self.n_with_idle += int(not is_chosen.any(0).all())


@contextmanager
def watching_routers() -> Iterator[RouterWatch]:
    """Look at every block of experts that runs in this process meanwhile."""
    watch = RouterWatch()

    def ask(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not (hasattr(block, "router") and hasattr(block, "experts")):
            return None
        x, packed = args
        is_training = torch.is_grad_enabled()

        def record(layer: int, chosen: Tensor) -> None:
            watch.look(block.router, x, chosen, is_training=is_training)

        return x, replace(packed, record_experts=record)

    handle = register_module_forward_pre_hook(ask)
    try:
        yield watch
    finally:
        handle.remove()
