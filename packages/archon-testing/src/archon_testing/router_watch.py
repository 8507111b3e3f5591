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
from torch.overrides import TorchFunctionMode

from archon_core.contracts.packed import PackedSequences

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
def watching_routers(*, of_others: bool = False) -> Iterator[RouterWatch]:
    """Look at every block of experts that runs in this process meanwhile.

    Args:
        of_others: whether routers are in modules of another library, of which only their choices can be seen.
    """
    watch = RouterWatch()
    if of_others:
        with _WatchedChoices(watch):
            yield watch
        return

    def ask(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not (hasattr(block, "router") and hasattr(block, "experts")) or not _takes_packed(args):
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


def _takes_packed(args: tuple[Any, ...]) -> bool:
    """Whether a block is called as ``archon_core.contracts.moe`` describes blocks of experts."""
    return len(args) == 2 and isinstance(args[1], PackedSequences)


class _WatchedChoices(TorchFunctionMode):
    """Looks at every ``topk`` of tokens by experts. Routers choose among probabilities or logits, so distances are
    those of logarithms where all are positive."""

    def __init__(self, watch: RouterWatch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        chosen = func(*args, **kwargs)
        # Tensors without values are of a class of their own.
        if func in (torch.topk, Tensor.topk) and type(args[0]) is Tensor and args[0].ndim == 2:
            self._look(args[0].detach().double(), chosen[0].shape[-1])
        return chosen

    @torch.no_grad()
    def _look(self, scores: Tensor, k: int) -> None:
        if k >= scores.shape[1] or not scores.isfinite().all():
            return  # nothing is left out, or a choice of groups came before
        best = scores.sort(dim=1, descending=True).values
        inside, outside = best[:, k - 1], best[:, k]
        margins = (inside / outside).log() if bool((scores > 0).all()) else inside - outside
        self._watch.margin = min([self._watch.margin, *margins.tolist()])
