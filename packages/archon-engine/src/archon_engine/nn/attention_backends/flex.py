"""Packed attention by FlexAttention: CUDA, 16- and 32-bit types, windows in every torch release.

The block mask is computed from the lengths on the host; torch's ``create_block_mask`` would evaluate the mask for every
pair of tokens, [T, T].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.packed import AttentionSettings, PackedSequences

BLOCK = 128
"""Tokens per block, the kernel's default."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packed: PackedSequences,
    settings: AttentionSettings,
    sinks: Tensor | None = None,
) -> Tensor:
    """See ``archon_engine.nn.attention.Backend``."""
    if packed.shared is None:
        mask = _block_mask(packed.lengths, settings.window, k.shape[0] - q.shape[0], q.device)
    else:
        shared = packed.shared
        mask = _tree_block_mask(shared.segments, shared.parents, shared.queries, settings.window, q.device)
    arguments = {
        "score_mod": None if settings.softcap is None else _cap(settings.softcap),
        "block_mask": mask,
        "scale": settings.scale,
        "enable_gqa": q.shape[1] != k.shape[1],
    }
    heads = [x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)]
    if sinks is None:
        out = _compiled_flex_attention()(*heads, **arguments)
    else:
        from torch.nn.attention.flex_attention import AuxRequest

        out, auxiliary = _compiled_flex_attention()(*heads, **arguments, return_aux=AuxRequest(lse=True))
        # exp(lse) is the softmax's denominator without the sink: out exp(lse) / (exp(lse) + exp(sink)).
        out = out * torch.sigmoid(auxiliary.lse - sinks[:, None]).unsqueeze(-1).to(out.dtype)
    return out.squeeze(0).transpose(0, 1)


def obstacles(
    device_type: str, dtype: torch.dtype, head_dim: int, settings: Collection[AttentionSettings]
) -> list[str]:
    """See ``archon_engine.nn.attention.Backend``."""
    if device_type != "cuda":
        # FlexAttention has no backward on the CPU (seen on torch 2.13).
        return [f"it needs a CUDA device, found {device_type}"]
    return ["it has no float64"] if dtype == torch.float64 else []


@cache
def _cap(softcap: float) -> Callable[..., Tensor]:
    # One function object per cap: torch.compile recompiles for a new object.
    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return torch.tanh(score / softcap) * softcap

    return capped


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # Eager FlexAttention computes the whole [T, T]; dynamic, because every batch has another T.
    return torch.compile(flex_attention, dynamic=True)


def first_key_blocks(
    lengths: Sequence[int], window: int | None, block: int = BLOCK, *, first_query: int = 0
) -> list[int]:
    """For each block of queries, the first block of keys that any of them sees; the last is that of its last token.

    The first key that a token sees never decreases along the pack, so a block's first token decides for the block, and
    the key blocks in between are all needed.

    Args:
        lengths: of the sequences.
        window: number of keys that a token sees.
        block: tokens of a block.
        first_query: the place from which tokens have queries.
    """
    starts = [0, *accumulate(lengths)]
    first_blocks, sequence = [], 0
    for query in range(first_query, starts[-1], block):
        while starts[sequence + 1] <= query:
            sequence += 1
        first_key = starts[sequence] if window is None else max(starts[sequence], query - window + 1)
        first_blocks.append(first_key // block)
    return first_blocks


@lru_cache(maxsize=8)
def _block_mask(lengths: tuple[int, ...], window: int | None, first_query: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    first, total = torch.tensor(first_key_blocks(lengths, window, first_query=first_query)), sum(lengths)
    n_key_blocks = -(-total // BLOCK)
    ends = torch.arange(1, len(first) + 1) * BLOCK + first_query
    counts = (ends.clamp(max=total) - 1) // BLOCK - first + 1
    # Per query block its key blocks, padded to the width of the table; entries beyond the count are not read.
    table = (first[:, None] + torch.arange(n_key_blocks)).clamp(max=n_key_blocks - 1)
    with torch.inference_mode(False):
        sequence_of_token = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)

        def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            place = query + first_query
            seen = (sequence_of_token[place] == sequence_of_token[key]) & (key <= place)
            return seen if window is None else seen & (place - key < window)

        return BlockMask.from_kv_blocks(
            counts[None, None].to(device, torch.int32),
            table[None, None].to(device, torch.int32),
            BLOCK_SIZE=BLOCK,
            mask_mod=visible,
            seq_lengths=(total - first_query, total),
        )


def tree_places(lengths: Sequence[int], parents: Sequence[int]) -> tuple[Tensor, Tensor]:
    """For every token of a tree its depth, and the place before which all tokens lie whose paths contain it: int64 [T].

    Args:
        lengths: of the tree's segments, in depth-first order.
        parents: for every segment the token that it continues; -1 for none.
    """
    starts = [0, *accumulate(lengths)]
    depths = torch.arange(starts[-1])
    ends = torch.empty_like(depths)
    # The path to the token before, as ranges (start, end) of it; the next segment continues one of its tokens or none.
    path: list[tuple[int, int]] = []
    for start, end, parent in zip(starts, starts[1:], parents, strict=False):
        while path and path[-1][0] > parent:
            ends[slice(*path.pop())] = start
        if path:
            left, right = path.pop()
            ends[parent + 1 : right] = start
            path.append((left, parent + 1))
            depths[start:end] += depths[parent] + 1 - start
        else:
            depths[start:end] -= start
        path.append((start, end))
    for left, right in path:
        ends[left:right] = starts[-1]
    return depths, ends


def needed_blocks(subtree_ends: Tensor, places: Tensor, block: int = BLOCK) -> Tensor:
    """Which blocks of keys each block of queries needs: bool [query blocks, key blocks].

    The tokens whose paths contain a key follow it without a gap, so a block of queries needs every block of keys that
    starts before its last query and has a key whose subtree ends behind its first one. Where queries have gaps between
    them, these may be a few blocks more, of which the kernel then finds all pairs hidden.

    Args:
        subtree_ends: [T], from ``tree_places``.
        places: [Q], the places of the queries, ascending.
        block: tokens of a block.
    """
    n_tokens, n_queries = len(subtree_ends), len(places)
    n_key_blocks, n_query_blocks = -(-n_tokens // block), -(-n_queries // block)
    padded = torch.nn.functional.pad(subtree_ends, (0, n_key_blocks * block - n_tokens))
    ends = padded.view(n_key_blocks, block).amax(1)
    firsts = torch.arange(n_query_blocks) * block
    first, last = places[firsts], places[(firsts + block).clamp(max=n_queries) - 1]
    return (torch.arange(n_key_blocks) * block <= last[:, None]) & (ends > first[:, None])


@lru_cache(maxsize=8)
def _tree_block_mask(
    segments: tuple[int, ...],
    parents: tuple[int, ...],
    queries: tuple[range, ...] | None,
    window: int | None,
    device: torch.device,
) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    depths, ends = tree_places(segments, parents)
    ranges = (range(len(depths)),) if queries is None else queries
    places = torch.cat([torch.arange(part.start, part.stop) for part in ranges])
    needed = needed_blocks(ends, places)
    # Per query block its key blocks, then the others, which are not read.
    table = torch.sort((~needed).to(torch.int8), dim=1, stable=True).indices
    with torch.inference_mode(False):
        depth_of, end_of, place_of = depths.to(device), ends.to(device), places.to(device)

        def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            place = place_of[query]
            on_path = (key <= place) & (place < end_of[key])
            return on_path if window is None else on_path & (depth_of[place] - depth_of[key] < window)

        return BlockMask.from_kv_blocks(
            needed.sum(1)[None, None].to(device, torch.int32),
            table[None, None].to(device, torch.int32),
            BLOCK_SIZE=BLOCK,
            mask_mod=visible,
            seq_lengths=(len(places), len(depths)),
        )
