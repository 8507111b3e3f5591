"""Packed attention by ``scaled_dot_product_attention``: any device, any floating type, differentiable.

Sequences of similar length go through one call (``buckets``). Grouped heads are left to kernels that support them,
which read a key head once for its group. A window is a mask over one sequence, [L, L], never over the whole pack.
Where sequences share prefixes, every segment is one call, with a mask over its path.

Legend: T tokens, R rows (tokens with padding), L length of a bucket, B sequences of a call, Q queries and K keys of
one, Hq and Hkv heads, D head dimension, Dv that of values.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from archon_core.contracts.packed import AttentionSettings, PackedSequences, SharedPrefixes
from archon_engine.nn.attention_backends.buckets import Bucket, plan_buckets
from archon_engine.nn.attention_backends.paths import gather_paths

MOST_MASKED_QUERIES = 1024
"""Largest number of rows of a mask over a path. Longer segments are attended in parts, each with the keys that it sees,
so that a mask needs memory for one dimension only, and no time goes into keys that all rows of it hide."""


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
    parts = [_attend_path(own, k[:n_keys], v[:n_keys], settings, sinks)] if len(own) else []
    if len(others):
        parts.append(_attend_whole(others, k[n_keys:], v[n_keys:], lengths[1:], settings, sinks))
    return torch.cat(parts)


def _attend_whole(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], settings: AttentionSettings, sinks: Tensor | None
) -> Tensor:
    buckets, token_of_row, row_of_token = _layout(lengths, q.device)
    if token_of_row is not None:
        q, k, v = (x.index_select(0, token_of_row) for x in (q, k, v))
    if not buckets:
        return q.new_zeros(*q.shape[:-1], v.shape[-1])
    if len(buckets) == 1:
        out = _attend_bucket(q, k, v, buckets[0], settings, sinks)
    else:
        # Not slices: the gradient of each would be a tensor of all rows, mostly zeros, added to those of the others.
        n_rows = [bucket.n_rows for bucket in buckets]
        parts = zip(q.split(n_rows), k.split(n_rows), v.split(n_rows), buckets, strict=True)
        out = torch.cat([_attend_bucket(*part, settings, sinks) for part in parts])
    return out if row_of_token is None else out.index_select(0, row_of_token)


def obstacles(
    device_type: str, dtype: torch.dtype, head_dim: int, settings: Collection[AttentionSettings]
) -> list[str]:
    """See ``archon_engine.nn.attention.Backend``: it computes everything, everywhere."""
    return []


def _attend_bucket(
    q: Tensor, k: Tensor, v: Tensor, bucket: Bucket, settings: AttentionSettings, sinks: Tensor | None
) -> Tensor:
    """[R, heads, D] to [R, Hq, Dv] for the rows of one bucket."""
    size = (len(bucket.sequences), bucket.length)
    q, k, v = (x.unflatten(0, size).transpose(1, 2) for x in (q, k, v))
    needs_mask = settings.softcap is not None or sinks is not None
    if needs_mask or (settings.window is not None and settings.window < bucket.length):
        mask = _mask(bucket.length, bucket.length, settings.window, q.device)
    else:
        mask = None
    return _attend_masked(q, k, v, mask, settings, sinks, is_causal=mask is None).transpose(1, 2).flatten(0, 1)


def _attend_paths(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packed: PackedSequences,
    shared: SharedPrefixes,
    settings: AttentionSettings,
    sinks: Tensor | None,
) -> Tensor:
    """[T, Hq, Dv] for a tree: a call per segment, whose queries see the keys of the path to its end."""
    k, v = (gather_paths(x, shared.key_tokens).split(shared.key_lengths) for x in (k, v))
    return torch.cat([_attend_path(*one, settings, sinks) for one in zip(q.split(packed.lengths), k, v, strict=True)])


def _attend_path(q: Tensor, k: Tensor, v: Tensor, settings: AttentionSettings, sinks: Tensor | None) -> Tensor:
    """[Q, Hq, Dv] for queries [Q, Hq, D] at the end of a path of keys [K, Hkv, D]."""
    n_queries, n_keys = q.shape[0], k.shape[0]
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    plain = settings.softcap is None and sinks is None
    if plain and settings.window is None and n_queries in (1, n_keys):
        out = _attend_masked(q, k, v, None, settings, None, is_causal=n_queries > 1)
        return out[0].transpose(0, 1)
    outs, window = [], settings.window or n_keys
    for first in range(0, n_queries, MOST_MASKED_QUERIES):
        rows = q[:, :, first : first + MOST_MASKED_QUERIES]
        end = n_keys - n_queries + first + rows.shape[2]
        start = max(0, end - rows.shape[2] - window + 1)
        mask = _mask(rows.shape[2], end - start, settings.window, q.device)
        outs.append(_attend_masked(rows, k[:, :, start:end], v[:, :, start:end], mask, settings, sinks))
    return torch.cat(outs, dim=2)[0].transpose(0, 1)


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


@lru_cache(maxsize=32)
def _layout(lengths: tuple[int, ...], device: torch.device) -> tuple[tuple[Bucket, ...], Tensor | None, Tensor | None]:
    """The plan with its indices on the device, computed by the first layer of a forward and reused by the others."""
    plan = plan_buckets(lengths)
    if plan.token_of_row is None or plan.row_of_token is None:
        return plan.buckets, None, None
    # The first use may be under inference_mode, whose tensors autograd refuses to save in a later training step.
    with torch.inference_mode(False):
        return plan.buckets, torch.tensor(plan.token_of_row).to(device), torch.tensor(plan.row_of_token).to(device)
