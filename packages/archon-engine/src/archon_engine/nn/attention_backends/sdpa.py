"""Packed attention by ``scaled_dot_product_attention``: any device, any floating type, differentiable.

Sequences of similar length go through one call (``buckets``). Grouped heads are left to kernels that support them,
which read a key head once for its group. A window is a mask over one sequence, never over the whole pack. Where
sequences share prefixes, segments of similar length that are equally far from the start of their paths go through one
call and share a mask over a path.

Legend: T tokens, R rows (tokens with padding), B sequences of a call, Q queries and K keys of one, Hq and Hkv heads,
D head dimension, Dv that of values.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from archon_core.contracts.packed import AttentionSettings, PackedSequences, SharedPrefixes
from archon_engine.nn.attention_backends.buckets import Bucket, plan_buckets
from archon_engine.nn.attention_backends.paths import gather_paths

MOST_MASKED_QUERIES = 1024
"""Largest number of rows of a mask. Longer sequences and segments are attended in parts, each with the keys that it
sees, so that a mask needs memory for one dimension only, and no time goes into keys that all rows of it hide."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packed: PackedSequences,
    settings: AttentionSettings,
    sinks: Tensor | None = None,
) -> Tensor:
    """See ``archon_engine.nn.attention.Backend``."""
    if packed.shared is not None:
        return _attend_paths(q, k, v, packed, packed.shared, settings, sinks)
    if q.shape[0] < k.shape[0]:
        return _attend_last(q, k, v, packed.lengths, settings, sinks)
    return _attend_whole(q, k, v, packed.lengths, settings, sinks)


def _attend_last(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], settings: AttentionSettings, sinks: Tensor | None
) -> Tensor:
    """Attention of the last tokens of a pack, of which the first sequence has all others."""
    n_before, n_keys = k.shape[0] - q.shape[0], lengths[0]
    assert n_before <= n_keys, "only the first sequence has keys without queries"
    own, others = q.split([n_keys - n_before, k.shape[0] - n_keys])
    parts = []
    if len(own):
        bucket = Bucket(len(own), (0,), n_before)
        parts.append(_attend_bucket(own, k[:n_keys], v[:n_keys], bucket, settings, sinks))
    if len(others):
        parts.append(_attend_whole(others, k[n_keys:], v[n_keys:], lengths[1:], settings, sinks))
    return torch.cat(parts)


def _attend_whole(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], settings: AttentionSettings, sinks: Tensor | None
) -> Tensor:
    layout = _layout(lengths, None, q.device)
    if layout.key_of_row is not None:
        k, v = (x.index_select(0, layout.key_of_row) for x in (k, v))
    return _attend_buckets(q, k, v, layout, settings, sinks)


def _attend_paths(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packed: PackedSequences,
    shared: SharedPrefixes,
    settings: AttentionSettings,
    sinks: Tensor | None,
) -> Tensor:
    """[T, Hq, Dv] for a tree: the queries of a segment see the keys of the path to its end."""
    layout = _layout(packed.lengths, shared.key_lengths, q.device)
    keys = shared.key_tokens if layout.key_of_row is None else shared.key_tokens.index_select(0, layout.key_of_row)
    k, v = (gather_paths(x, keys) for x in (k, v))
    return _attend_buckets(q, k, v, layout, settings, sinks)


def _attend_buckets(
    q: Tensor, k: Tensor, v: Tensor, layout: _Layout, settings: AttentionSettings, sinks: Tensor | None
) -> Tensor:
    """[T, Hq, Dv] for the queries [T, Hq, D] and the rows of keys and values of a layout."""
    if layout.token_of_row is not None:
        q = q.index_select(0, layout.token_of_row)
    buckets = layout.buckets
    if not buckets:
        return q.new_zeros(*q.shape[:-1], v.shape[-1])
    if len(buckets) == 1:
        out = _attend_bucket(q, k, v, buckets[0], settings, sinks)
    else:
        # Not slices: the gradient of each would be a tensor of all rows, mostly zeros, added to those of the others.
        n_rows, n_key_rows = [bucket.n_rows for bucket in buckets], [bucket.n_key_rows for bucket in buckets]
        parts = zip(q.split(n_rows), k.split(n_key_rows), v.split(n_key_rows), buckets, strict=True)
        out = torch.cat([_attend_bucket(*part, settings, sinks) for part in parts])
    return out if layout.row_of_token is None else out.index_select(0, layout.row_of_token)


def obstacles(
    device_type: str, dtype: torch.dtype, head_dim: int, settings: Collection[AttentionSettings]
) -> list[str]:
    """See ``archon_engine.nn.attention.Backend``: it computes everything, everywhere."""
    return []


def _attend_bucket(
    q: Tensor, k: Tensor, v: Tensor, bucket: Bucket, settings: AttentionSettings, sinks: Tensor | None
) -> Tensor:
    """[R, Hq, Dv] for the rows of one bucket: queries [R, Hq, D], and keys with those before the queries."""
    n_queries, n_keys = bucket.length, bucket.n_before + bucket.length
    q, k, v = (x.unflatten(0, (len(bucket.sequences), -1)).transpose(1, 2) for x in (q, k, v))
    sees_all = settings.window is None or settings.window >= n_keys
    if settings.softcap is None and sinks is None and sees_all and n_queries in (1, n_keys):
        out = _attend_masked(q, k, v, None, settings, None, is_causal=n_queries > 1)
        return out.transpose(1, 2).flatten(0, 1)
    outs, window = [], settings.window or n_keys
    for first in range(0, n_queries, MOST_MASKED_QUERIES):
        rows = q[:, :, first : first + MOST_MASKED_QUERIES]
        end = bucket.n_before + first + rows.shape[2]
        start = max(0, end - rows.shape[2] - window + 1)
        mask = _mask(rows.shape[2], end - start, settings.window, q.device)
        outs.append(_attend_masked(rows, k[:, :, start:end], v[:, :, start:end], mask, settings, sinks))
    out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)
    return out.transpose(1, 2).flatten(0, 1)


def _mask(n_queries: int, n_keys: int, window: int | None, device: torch.device) -> Tensor:
    """bool [Q, K]: which keys the queries see that belong to the last Q of K tokens."""
    keys = torch.arange(n_keys, device=device)
    queries = keys[n_keys - n_queries :, None]
    seen = keys <= queries
    return seen if window is None or window >= n_keys else seen & (queries - keys < window)


def _attend_masked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    settings: AttentionSettings,
    sinks: Tensor | None,
    *,
    is_causal: bool = False,
) -> Tensor:
    """[B, Hq, Q, Dv] for queries [B, Hq, Q, D] and keys [B, Hkv, K, D].

    Args:
        mask: bool [Q, K], the keys that a query sees; needed for capped scores and sinks.
        is_causal: without a mask, whether a query sees only the keys up to its own; otherwise it sees all.
    """
    if mask is not None and (settings.softcap is not None or sinks is not None):
        return _by_scores(q, k, v, mask, settings, sinks)
    grouped = q.shape[1] != k.shape[1]
    if grouped and repeats_heads(q.device.type, q.dtype, masked=mask is not None):
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        grouped = False
    value_dim, widest = v.shape[-1], max(q.shape[-1], v.shape[-1])
    if q.device.type == "cpu":
        # The fused CPU kernel takes heads of one size (torch 2.11 to 2.13, ``sdp_utils_cpp.cpp``); else torch would
        # compute all scores. Zeros add nothing to scores, and zeros to outputs.
        q, k, v = (_widened(x, widest) for x in (q, k, v))
    out = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, scale=settings.scale, enable_gqa=grouped
    )
    return out if out.shape[-1] == value_dim else out[..., :value_dim]


def _widened(x: Tensor, size: int) -> Tensor:
    return x if x.shape[-1] == size else functional.pad(x, (0, size - x.shape[-1]))


def repeats_heads(device_type: str, dtype: torch.dtype, *, masked: bool) -> bool:
    """Whether grouped key heads must be repeated to get a fused kernel.

    On CUDA only the flash kernel takes grouped heads, in 16-bit types and without a mask. The memory-efficient kernel
    takes everything else, but not grouped heads (torch 2.11 to 2.13, ``sdp_utils.cpp``); torch would then compute all
    scores, several times [Hq, L, L]. CPU kernels take grouped heads.
    """
    return device_type == "cuda" and (masked or dtype not in (torch.bfloat16, torch.float16))


def _by_scores(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, settings: AttentionSettings, sinks: Tensor | None
) -> Tensor:
    """Attention with capped scores or sinks, which torch's kernel lacks: of each sequence all scores, [Hq, L, L]."""
    q = q.unflatten(1, (k.shape[1], -1))
    scores = torch.matmul(q, k.transpose(-1, -2)[:, :, None]) * settings.scale
    if settings.softcap is not None:
        scores = torch.tanh(scores / settings.softcap) * settings.softcap
    masked = scores.to(torch.promote_types(q.dtype, torch.float32)).masked_fill(~mask, -torch.inf)
    if sinks is None:
        weights = masked.softmax(-1)
    else:
        # One more key per query, whose weight is left out.
        of_head = sinks.to(masked.dtype).view(1, *q.shape[1:3], 1, 1).expand(*masked.shape[:-1], 1)
        weights = torch.cat((masked, of_head), dim=-1).softmax(-1)[..., :-1]
    return torch.matmul(weights.to(v.dtype), v[:, :, None]).flatten(1, 2)


@dataclass(frozen=True)
class _Layout:
    """A ``BucketPlan`` with its indices as tensors on the device."""

    buckets: tuple[Bucket, ...]
    token_of_row: Tensor | None
    key_of_row: Tensor | None
    row_of_token: Tensor | None


@lru_cache(maxsize=32)
def _layout(lengths: tuple[int, ...], key_lengths: tuple[int, ...] | None, device: torch.device) -> _Layout:
    """The layout of a pack, computed by the first layer of a forward and reused by the others."""
    n_before = None if key_lengths is None else [k - n for k, n in zip(key_lengths, lengths, strict=True)]
    plan = plan_buckets(lengths, n_before)
    # The first use may be under inference_mode, whose tensors autograd refuses to save in a later training step.
    with torch.inference_mode(False):
        rows = (plan.token_of_row, plan.key_of_row, plan.row_of_token)
        return _Layout(plan.buckets, *(None if each is None else torch.tensor(each).to(device) for each in rows))
