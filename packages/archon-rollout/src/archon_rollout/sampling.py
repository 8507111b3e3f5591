"""Sampling of the next token: temperature, top-k, top-p and an inverse-CDF draw, as pure functions of logits and
uniform numbers.

A row's token does not depend on other rows: every function works row by row, draws in vocabulary order, and breaks ties
by the lower token id.

Legend: R rows, V vocabulary, B blocks of the vocabulary, W tokens in a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES = 1024
"""Number of top tokens to rank first; the whole vocabulary is ranked only if these do not determine the kept set."""


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling options of R rows.

    Attributes:
        temperature: float64 [R], positive; 1 for greedy rows.
        top_p: float64 [R] in (0, 1]; 1 keeps all.
        top_k: int64 [R]; 0 keeps all.
        greedy: bool [R].
        any_tempered, any_filtered, any_greedy: whether some row needs that operation. Host values, so that the common
            case launches no kernels for it and does not synchronise.
    """

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    greedy: Tensor
    any_tempered: bool
    any_filtered: bool
    any_greedy: bool


def sample(logits: Tensor, uniforms: Tensor, options: SamplingOptions, banned: Tensor | None) -> tuple[Tensor, Tensor]:
    """The next token of every row and its log-probability.

    Args:
        logits: [R, V], fp32 or wider.
        uniforms: float64 [R] in [0, 1).
        banned: bool [R, V], tokens to exclude; ``None`` for none.

    Returns:
        Token ids, int64 [R], and their log-probabilities [R] under the tempered distribution over the tokens that are
        not excluded, before filtering. They are not finite where the logits are not.
    """
    if options.any_tempered:
        logits = logits / options.temperature[:, None].to(logits.dtype)
    if banned is not None:
        logits = logits.masked_fill(banned, -torch.inf)
    if options.any_filtered:
        drawn, _ = draw(filter_logits(logits, options.top_k, options.top_p), uniforms)
        log_normaliser = logits.logsumexp(-1)
    else:
        drawn, log_normaliser = draw(logits, uniforms)
    if options.any_greedy:
        drawn = torch.where(options.greedy, logits.argmax(-1), drawn)
    return drawn, logits.gather(1, drawn[:, None])[:, 0] - log_normaliser


def penalise_frequency(logits: Tensor, token_ids: Tensor, n_generated: Tensor, penalty: Tensor) -> Tensor:
    """``logits`` [R, V] minus ``penalty`` times the number of times that a completion has the token.

    Args:
        token_ids: int64 [R, N], the tokens of the completions, padded with anything.
        n_generated: int64 [R], tokens of each completion, at most N.
        penalty: float64 [R].
    """
    counted = torch.arange(token_ids.shape[1], device=token_ids.device) < n_generated[:, None]
    counts = torch.zeros_like(logits).scatter_add_(1, token_ids, counted.to(logits.dtype))
    return logits - penalty[:, None].to(logits.dtype) * counts


def draw(logits: Tensor, uniforms: Tensor, *, block_width: int | None = None) -> tuple[Tensor, Tensor]:
    """Draw from softmax(logits) by inverting its cumulative distribution at ``uniforms``.

    A running sum over a large vocabulary loses the rarest tokens in fp32, and in float64 takes longer than the softmax.
    So a block of the vocabulary is drawn first, from the masses of the blocks, then a token inside it, with the
    remainder of the same uniform number.

    Args:
        block_width: tokens per block; ``None`` for about the square root of V. Changes the result only by rounding.

    Returns:
        Token ids, int64 [R], and logsumexp(logits) [R]. A token with logit -inf is never drawn if another has a finite
        logit.
    """
    vocabulary = logits.shape[1]
    width = min(block_width or 2 ** round(math.log2(vocabulary) / 2), vocabulary)
    n_blocks = vocabulary // width
    log_mass_RB = logits[:, : n_blocks * width].unflatten(1, (n_blocks, width)).logsumexp(-1)
    if n_blocks * width < vocabulary:
        rest = logits[:, n_blocks * width :].logsumexp(-1, keepdim=True)
        log_mass_RB = torch.cat((log_mass_RB, rest), dim=1)
    log_normaliser = log_mass_RB.logsumexp(-1)
    mass_RB = (log_mass_RB.double() - log_normaliser[:, None].double()).exp()
    block, inside = _invert(mass_RB, uniforms)

    # The last block may be shorter; it is padded with entries of no mass.
    ids_RW = block[:, None] * width + torch.arange(width, device=logits.device)
    within = ids_RW < vocabulary
    logits_RW = logits.gather(1, ids_RW.clamp(max=vocabulary - 1)).masked_fill(~within, -torch.inf)
    log_block_mass = log_mass_RB.gather(1, block[:, None])
    mass_RW = (logits_RW.double() - log_block_mass.double()).exp()
    place, _ = _invert(mass_RW, inside)
    # Non-finite logits give arbitrary indices; keep them inside the vocabulary.
    return (block * width + place).clamp_(max=vocabulary - 1), log_normaliser


def _invert(mass: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The index in each row of ``mass`` (float64 [R, N], at least 0) where the cumulative share passes ``uniforms``.

    Returns:
        The indices, int64 [R], of entries with positive mass, and the relative position of the uniform number inside
        that entry: float64 [R] in [0, 1), itself uniform.
    """
    cumulative = mass.cumsum(-1)
    # A number below 1 times the total rounds to less than the total, so the search always finds an entry.
    target = uniforms[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True).clamp_(max=mass.shape[1] - 1)
    chosen = mass.gather(1, index)
    before = cumulative.gather(1, index) - chosen
    inside = ((target - before) / chosen).clamp_(0, 1 - 2.0**-53)
    return index[:, 0], inside[:, 0]


def filter_logits(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """``logits`` [R, V] with the tokens that top-k or top-p removes set to -inf.

    Top-k applies first. Top-p then keeps the smallest set of most probable tokens, at least one, whose renormalised
    probability reaches ``top_p``. Among equal logits at the border, lower ids stay.

    Args:
        top_k: int64 [R]; 0 keeps all.
        top_p: float64 [R]; 1 keeps all.
    """
    vocabulary = logits.shape[1]
    limit = torch.where(top_k > 0, top_k, vocabulary).clamp(max=vocabulary)
    cuts = (limit < vocabulary) | (top_p < 1)
    needed = int(torch.where(cuts, limit, 1).max())
    width = min(needed, CANDIDATES)
    while True:
        ranked = _most_probable(logits, width)
        n_kept, settled = _count_kept(ranked, logits.logsumexp(-1, keepdim=True), limit, top_p, vocabulary)
        if width == needed or bool((settled | ~cuts).all()):
            break
        width = needed
    border = ranked.gather(1, n_kept.clamp(max=width)[:, None] - 1)
    above = logits > border
    at_border = logits == border
    room = n_kept[:, None] - above.sum(-1, keepdim=True)
    kept = above | (at_border & (at_border.cumsum(-1) <= room)) | ~cuts[:, None]
    return logits.masked_fill(~kept, -torch.inf)


def _most_probable(logits: Tensor, width: int) -> Tensor:
    """The ``width`` largest values of each row, largest first."""
    if width == logits.shape[1]:
        return logits.sort(dim=-1, descending=True).values
    return logits.topk(width, dim=-1).values


def _count_kept(
    ranked: Tensor, log_normaliser: Tensor, limit: Tensor, top_p: Tensor, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """The number of tokens to keep per row, and whether the ranked tokens suffice to determine it: int64 and bool [R].

    Args:
        ranked: [R, N], the N largest logits of each row, largest first.
        log_normaliser: [R, 1], logsumexp over the whole vocabulary.
        limit: int64 [R], the number of tokens that top-k keeps.
    """
    width = ranked.shape[1]
    reach = (ranked.double() - log_normaliser.double()).exp().cumsum(-1)
    share_of_k = reach.gather(1, limit.clamp(max=width)[:, None] - 1)
    share = torch.where(limit[:, None] < vocabulary, share_of_k, 1.0)
    enough = reach >= top_p[:, None] * share
    n_nucleus = torch.where(top_p < 1, (~enough).sum(-1) + 1, vocabulary)
    settled = (limit <= width) | ((limit == vocabulary) & enough[:, -1])
    return torch.minimum(n_nucleus, limit), settled
