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
        mask = _tree_block_mask(packed.lengths, packed.shared.parents, settings.window, q.device)
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


def last_query_blocks(subtree_ends: Tensor, block: int = BLOCK) -> Tensor:
    """For each block of keys, the last block of queries that sees any of them; the first is its own.

    The tokens whose paths contain a key follow it without a gap, so every block in between sees the block's key with
    the last such token.
    """
    n_blocks = -(-len(subtree_ends) // block)
    padded = torch.nn.functional.pad(subtree_ends, (0, n_blocks * block - len(subtree_ends)))
    return (padded.view(n_blocks, block).amax(1) - 1) // block


@lru_cache(maxsize=8)
def _tree_block_mask(
    lengths: tuple[int, ...], parents: tuple[int, ...], window: int | None, device: torch.device
) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    depths, ends = tree_places(lengths, parents)
    last = last_query_blocks(ends)
    blocks = torch.arange(len(last))
    seen = (blocks <= blocks[:, None]) & (last >= blocks[:, None])
    # Per query block its key blocks, then the others, which are not read.
    table = torch.sort((~seen).to(torch.int8), dim=1, stable=True).indices
    with torch.inference_mode(False):
        depth_of, end_of = depths.to(device), ends.to(device)

        def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            on_path = (key <= query) & (query < end_of[key])
            return on_path if window is None else on_path & (depth_of[query] - depth_of[key] < window)

        return BlockMask.from_kv_blocks(
            seen.sum(1)[None, None].to(device, torch.int32),
            table[None, None].to(device, torch.int32),
            BLOCK_SIZE=BLOCK,
            mask_mod=visible,
            seq_lengths=(len(depths), len(depths)),
        )
