"""Watches routers during a reference run: margins of routing decisions, and experts without tokens.

Rounding may swap two experts with nearly equal logits, so that a correct layout would differ. So references use only
weights for which all routing decisions are unambiguous; other weights are redrawn.

Legend: T tokens, E experts, K experts per token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from archon_core.contracts.packed import PackedSequences

LEAST_MARGIN = 1e-4
"""Least distance between the last chosen logit and the first unchosen one: far above fp32 rounding."""

LARGEST_SLOPE = 0.25
"""Of the sigmoid, and of a softmax in its own logit: the rounding of a score is at most a quarter of its logit's."""


class AmbiguousRoutingError(Exception):
    """A run that a watch stops, because rounding could change a choice of experts."""


@dataclass
class RouterWatch:
    """Statistics of routers.

    Attributes:
        stops: end the run at the first ambiguous decision, by an ``AmbiguousRoutingError``.
        margin: the smallest margin of all tokens; infinite without experts.
        n_passes: number of training passes of expert blocks.
        n_with_idle: number of those passes in which some expert got no token.
    """

    stops: bool = False
    margin: float = math.inf
    n_passes: int = 0
    n_with_idle: int = 0

    @property
    def is_clear(self) -> bool:
        """Whether all decisions are unambiguous, and some expert without tokens is covered."""
        return self.margin > LEAST_MARGIN and (self.n_passes == 0 or self.n_with_idle > 0)

    @torch.no_grad()
    def look(self, router: nn.Module, x: Tensor, chosen: Tensor, *, is_training: bool) -> None:
        """Record one pass: ``x`` [T, hidden], ``chosen`` int [T, K], -1 for padding."""
        real = chosen[:, 0] >= 0
        x, chosen = x.detach()[real], chosen[real].long()
        logits = x.double() @ router.weight.detach().double().T
        if getattr(router, "bias", None) is not None:
            logits += router.bias.detach().double()
        scores, group_margins = _ranking(router, logits)
        is_chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)
        margins = group_margins.tolist()
        if not is_chosen.all() and len(chosen):
            inside = scores.masked_fill(~is_chosen, math.inf).amin(1)
            outside = scores.masked_fill(is_chosen, -math.inf).amax(1)
            # Below zero if the router ranks experts in another way; then a margin between experts is meaningless.
            margins += (inside - outside)[inside > outside].tolist()
        self.note(margins)
        if is_training:
            self.n_passes += 1
            self.n_with_idle += int(not is_chosen.any(0).all())

    def note(self, margins: Sequence[float]) -> None:
        """Record margins. Raises AmbiguousRoutingError: one is too small, and the watch stops runs."""
        self.margin = min([self.margin, *margins])
        if self.stops and not self.margin > LEAST_MARGIN:
            raise AmbiguousRoutingError


@contextmanager
def watching_routers(*, of_others: bool = False, stops: bool = False) -> Iterator[RouterWatch]:
    """Watch every expert block that runs in this process inside the block.

    Args:
        stops: see ``RouterWatch``.
        of_others: whether the routers belong to another library, of which only ``topk`` calls can be observed.
    """
    watch = RouterWatch(stops)
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


def _ranking(router: nn.Module, logits: Tensor) -> tuple[Tensor, Tensor]:
    """What a router ranks experts by, [T, E], and each token's margin between groups of experts, empty without groups.

    Both in units of logits: a router that ranks by scores is judged like one that ranks by logits. Experts of groups
    that a token may not choose from have -inf.
    """
    bias, settings = getattr(router, "choice_bias", None), getattr(router, "settings", None)
    has_groups = settings is not None and settings.top_k_groups < settings.n_groups
    if bias is None and not has_groups:
        return logits, logits.new_empty(0)
    by_softmax = settings is not None and settings.score == "softmax"
    scores = logits.softmax(-1) if by_softmax else logits.sigmoid()
    scores = (scores if bias is None else scores + bias.detach().double()) / LARGEST_SLOPE
    if not has_groups:
        return scores, logits.new_empty(0)
    grouped_TGe = scores.unflatten(-1, (settings.n_groups, -1))
    best_TG = grouped_TGe.topk(min(2, grouped_TGe.shape[-1]), dim=-1).values.sum(-1)
    ordered = best_TG.sort(dim=1, descending=True).values
    last, first_outside = ordered[:, settings.top_k_groups - 1], ordered[:, settings.top_k_groups]
    eligible_TG = best_TG >= last[:, None]
    return grouped_TGe.masked_fill(~eligible_TG[..., None], -math.inf).flatten(-2), last - first_outside


def _takes_packed(args: tuple[Any, ...]) -> bool:
    """Whether a block is called with the signature of ``archon_core.contracts.moe``."""
    return len(args) == 2 and isinstance(args[1], PackedSequences)


class _WatchedChoices(TorchFunctionMode):
    """Observes every ``topk`` over [tokens, experts]. Scores may be probabilities or logits, so distances are taken
    between logarithms if all scores are positive."""

    def __init__(self, watch: RouterWatch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        chosen = func(*args, **kwargs)
        # Skip tensors without values, which have another class.
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
        self._watch.note(margins.tolist())
