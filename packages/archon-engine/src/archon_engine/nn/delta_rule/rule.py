"""The gated delta rule (Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464) in plain PyTorch, chunk by chunk.

With keys and queries of length 1, per head and token:

    S = S * exp(g);  S = S + k (beta (v - S^T k))^T;  o = S^T q / sqrt(K)

Within a chunk, the corrections of all tokens solve one triangular system (the UT transform of Yang et al. 2024,
arXiv:2406.06484). Between chunks, the state changes by an affine map. ``segment_map`` returns that of a whole segment,
which context ranks exchange.

A chunk of one token is the recurrent form, so decoding takes the same path.

Legend: T tokens, S segments, N chunks, C tokens of a chunk, Hk key heads, H value heads, K key and V value dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from archon_engine.nn.delta_rule.chunks import ChunkPlan

NORM_EPS = 1e-6
"""Added to the squared lengths of queries and keys, as in fla and transformers."""


@dataclass(frozen=True)
class _Corrections:
    """What the state changes by in each chunk: ``v_new = values - reads @ S`` and ``S = S * decay + keys^T @ v_new``.

    Attributes:
        values: [N, H, C, V].
        reads: [N, H, C, K].
        keys: [N, H, C, K], decayed to the end of the chunk.
        decay: [N, H, 1, 1], of the whole chunk.
        log_decay: [N, H, C], summed from the start of the chunk.
        pairwise: [N, H, C, C], decay between two tokens of a chunk; 0 above the diagonal.
    """

    values: Tensor
    reads: Tensor
    keys: Tensor
    decay: Tensor
    log_decay: Tensor
    pairwise: Tensor


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    lengths: tuple[int, ...],
    initial: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply the rule to every segment, in at least fp32.

    Args:
        q: [T, Hk, K]; value head i reads with query head i // (H / Hk).
        k: [T, Hk, K].
        v: [T, H, V].
        log_decay: [T, H], g, at most 0.
        beta: [T, H], the share of a correction that is written.
        lengths: of the segments.
        initial: [S, H, K, V], states before the segments; ``None`` for zeros.

    Returns:
        Outputs [T, H, V] in the type of ``q``, and the states after the segments [S, H, K, V].
    """
    plan, n_heads = ChunkPlan.of(lengths), v.shape[1]
    q_NHCK, k_NHCK = (_normalised(_chunked(_of_value_heads(x, n_heads), plan)) for x in (q, k))
    changes = _corrections(k_NHCK, _chunked(v, plan), _chunked(log_decay, plan), _chunked(beta, plan))
    q_NHCK = q_NHCK * q.shape[-1] ** -0.5
    within = (q_NHCK @ k_NHCK.transpose(-1, -2)) * changes.pairwise
    q_NHCK = q_NHCK * changes.log_decay.exp()[..., None]
    order = torch.tensor(plan.order, dtype=torch.int64)
    if initial is None:
        state = v.new_zeros(len(lengths), n_heads, q.shape[-1], v.shape[-1], dtype=q_NHCK.dtype)
    else:
        state = initial.to(q_NHCK.dtype)[order.to(v.device, non_blocking=True)]
    outputs, ended, n_before = [], [], len(lengths)
    for n_active, values, reads, keys, decay, q_now, within_now in _steps(plan, changes, q_NHCK, within):
        ended.append(state[n_active:n_before])
        state, n_before = state[:n_active], n_active
        v_new = values - reads @ state
        outputs.append(q_now @ state + within_now @ v_new)
        state = state * decay + keys.transpose(-1, -2) @ v_new
    ended.append(state)
    final = torch.cat(ended[::-1])[order.argsort().to(v.device, non_blocking=True)]
    if not outputs:
        return torch.zeros_like(v), final
    out = torch.cat(outputs).transpose(1, 2).flatten(0, 1)
    return out[plan.rows.to(v.device, non_blocking=True)].to(q.dtype), final


def segment_map(k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map of one segment's state: ``S_after = transition @ S_before + offset``.

    Args:
        k: [T, Hk, K].
        v: [T, H, V].
        log_decay: [T, H].
        beta: [T, H].

    Returns:
        Transition [H, K, K] and offset [H, K, V], in at least fp32.
    """
    plan, n_heads, (key_dim, value_dim) = ChunkPlan.of((len(k),)), v.shape[1], (k.shape[-1], v.shape[-1])
    k_NHCK = _normalised(_chunked(_of_value_heads(k, n_heads), plan))
    changes = _corrections(k_NHCK, _chunked(v, plan), _chunked(log_decay, plan), _chunked(beta, plan))
    # The offset is the state after a start from zeros. The transition's columns start from the identity and receive
    # no values, so both are columns of one scan.
    identity = torch.eye(key_dim, dtype=k_NHCK.dtype, device=k.device).expand(n_heads, -1, -1)
    state = torch.cat((identity, identity.new_zeros(n_heads, key_dim, value_dim)), dim=-1)
    values = functional.pad(changes.values, (key_dim, 0))
    for own, reads, keys, decay in zip(values, changes.reads, changes.keys, changes.decay, strict=True):
        v_new = own - reads @ state
        state = state * decay + keys.transpose(-1, -2) @ v_new
    transition, offset = state.split((key_dim, value_dim), dim=-1)
    return transition, offset


def _steps(plan: ChunkPlan, changes: _Corrections, q: Tensor, within: Tensor) -> Iterator[tuple[Any, ...]]:
    """For each step of ``plan``: its number of segments, and the parts of all tensors.

    Split, not sliced: the gradient of a slice is a tensor of all chunks, mostly zeros.
    """
    tensors = (changes.values, changes.reads, changes.keys, changes.decay, q, within)
    return zip(plan.active, *(x.split(plan.active) for x in tensors), strict=True)


def _corrections(k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> _Corrections:
    """For keys [N, H, C, K], values [N, H, C, V], decays and betas [N, H, C]."""
    summed, pairwise = log_decay.cumsum(-1), _pairwise_decay(log_decay)
    k_beta = k * beta[..., None]
    system = (k_beta @ k.transpose(-1, -2)) * pairwise
    both = torch.cat((v * beta[..., None], k_beta * summed.exp()[..., None]), dim=-1)
    # Reads only what lies below the diagonal.
    solved = torch.linalg.solve_triangular(system, both, upper=False, unitriangular=True)
    values, reads = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    return _Corrections(
        values=values,
        reads=reads,
        keys=k * pairwise[..., -1, :, None],
        decay=summed[..., -1:, None].exp(),
        log_decay=summed,
        pairwise=pairwise,
    )


def _pairwise_decay(log_decay: Tensor) -> Tensor:
    """The decay from token j to token i of a chunk, [N, H, C, C] for [N, H, C]; 0 above the diagonal.

    Every pair sums the logarithms between its tokens. Differences of sums from the start of the chunk would cancel:
    where a head forgets fast, these sums reach hundreds, so their rounding to fp32 would be an error of 1e-5 in the
    decay between neighbours, which would depend on where chunks start.
    """
    size = log_decay.shape[-1]
    below = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).tril(-1)
    between = log_decay[..., :, None].masked_fill(~below, 0.0).cumsum(-2)
    # Masked before the exponential: its gradient above the diagonal is then zero.
    return between.masked_fill(below.T, -torch.inf).exp()


def _of_value_heads(x: Tensor, n_heads: int) -> Tensor:
    copies = n_heads // x.shape[1]
    return x if copies == 1 else x.repeat_interleave(copies, dim=1)


def _chunked(x: Tensor, plan: ChunkPlan) -> Tensor:
    """[T, H, ...] to [N, H, C, ...], in at least fp32. Rows without a token are zeros, which change no state.

    Contiguous, because every product of matrices would copy a transposed view, and save the copy.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    rows = plan.rows.to(x.device, non_blocking=True)
    padded = x.new_zeros(plan.n_chunks * plan.size, *x.shape[1:])
    padded[rows] = x  # saves the rows alone for backward; ``index_copy`` would save ``x``, too
    return padded.unflatten(0, (plan.n_chunks, plan.size)).transpose(1, 2).contiguous()


def _normalised(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + NORM_EPS)
