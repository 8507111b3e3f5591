"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): keys and values of all heads come from one
low-rank vector per token, and queries from another.

A query or key has two parts: its content, and a rotated part that carries the position. The rotated part of keys does
not pass the low-rank projection; all heads share it.

Tensor ranks hold whole heads. The down projections and their norms have the role ``replicated``: every rank applies
them to all tokens, and receives gradients from its own heads.

In generation, a cache that can (``LatentPrompts``) keeps the low-rank vector and the rotated part of a token instead of
its keys and values of all heads.

Legend: T tokens, Hq heads, C content of a head, R rotated elements, Dv (V) size of a value head, L size of the vector
that keys and values are made of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from archon_core.contracts.packed import AttentionSettings, LatentPrompts, LatentSteps, PackedSequences
from archon_engine.nn.attention import PackedAttention
from archon_engine.nn.linear import Linear
from archon_engine.nn.norm import RMSNorm
from archon_engine.nn.rotary import Rotation


@dataclass(frozen=True)
class LatentSizes:
    """The sizes of latent attention.

    Attributes:
        hidden_size: width of the residual stream.
        n_heads: Hq; keys and values have as many heads.
        query_rank: size of the vector that queries are made of; ``None`` for one projection without it.
        key_value_rank: size of the vector that keys and values are made of.
        content_dim: C.
        rotated_dim: R.
        value_dim: Dv.
    """

    hidden_size: int
    n_heads: int
    query_rank: int | None
    key_value_rank: int
    content_dim: int
    rotated_dim: int
    value_dim: int

    @property
    def head_dim(self) -> int:
        """Size of a query or key head."""
        return self.content_dim + self.rotated_dim


def latent_scale(head_dim: int, rope_parameters: Mapping[str, Any]) -> float:
    """The factor on scores. Where rotations are scaled, it makes up for the lower entropy of longer contexts, as YaRN
    does (arXiv:2309.00071, section 3.4), by ``(0.1 mscale_all_dim ln(factor) + 1)^2``."""
    scale, mscale = head_dim**-0.5, rope_parameters.get("mscale_all_dim")
    factor = rope_parameters.get("factor", 1.0)
    if rope_parameters["rope_type"] == "default" or not mscale or factor <= 1:
        return scale
    return scale * (0.1 * mscale * math.log(factor) + 1.0) ** 2


class LatentAttention(nn.Module):
    """Multi-head latent attention.

    Args:
        sizes: the sizes.
        layer: the layer's number.
        scale: factor on the scores.
        norm_eps: added to mean squares of the low-rank vectors.
        bias: biases on the down projections and on the output projection.
    """

    def __init__(self, sizes: LatentSizes, layer: int, *, scale: float, norm_eps: float, bias: bool = False) -> None:
        super().__init__()
        s = sizes
        self.sizes = s
        queries = s.n_heads * s.head_dim
        if s.query_rank is None:
            self.q_proj = Linear(s.hidden_size, queries)
        else:
            self.q_a_proj = Linear(s.hidden_size, s.query_rank, bias=bias)
            self.q_a_norm = RMSNorm(s.query_rank, norm_eps)
            self.q_b_proj = Linear(s.query_rank, queries)
        self.kv_a_proj = Linear(s.hidden_size, s.key_value_rank + s.rotated_dim, bias=bias)
        self.kv_a_norm = RMSNorm(s.key_value_rank, norm_eps)
        self.kv_b_proj = Linear(s.key_value_rank, s.n_heads * (s.content_dim + s.value_dim))
        self.o_proj = Linear(s.n_heads * s.value_dim, s.hidden_size, bias=bias)
        self.core = PackedAttention(str(layer), AttentionSettings(scale=scale))

    def forward(self, x: Tensor, rotation: Rotation, packed: PackedSequences) -> Tensor:
        """[T, hidden] to [T, hidden]. ``rotation`` is that of R elements."""
        s = self.sizes
        # Head counts come from the projections, which hold fewer heads when they are sharded.
        q_content, q_rotated = (
            self._queries(x).unflatten(-1, (-1, s.head_dim)).split((s.content_dim, s.rotated_dim), -1)
        )
        q_rotated = rotation.apply(q_rotated)
        cache = packed.cache
        if isinstance(cache, LatentSteps):
            latent, k_rotated = self._latent_and_rotated(x, rotation)
            out = self._attend_to_latents(q_content, q_rotated, latent, k_rotated, packed, cache)
            return self.o_proj(out.flatten(-2))
        q = self.core.send_queries(torch.cat((q_content, q_rotated), dim=-1), packed)
        latent, k_rotated = self._latent_and_rotated(x, rotation)
        if isinstance(cache, LatentPrompts):
            cache.store_latents(self.core.layer, torch.cat((latent[:, None], k_rotated), dim=-1))
            packed = replace(packed, cache=None)
        k_content, v = self._content_and_values(latent)
        # Attention takes keys by heads, so the shared part is repeated; backward sums over its copies.
        k = torch.cat((k_content, k_rotated.expand(-1, k_content.shape[1], -1)), dim=-1)
        out = self.core(q, k, v, packed)
        return self.o_proj(out.flatten(-2))

    def _attend_to_latents(
        self,
        q_content: Tensor,
        q_rotated: Tensor,
        latent: Tensor,
        k_rotated: Tensor,
        packed: PackedSequences,
        cache: LatentSteps,
    ) -> Tensor:
        """Attention of tokens to latent vectors in ``cache``: [T, Hq, Dv].

        A head's keys and values are matrices times the latent vector. The product with the key's matrix moves to the
        query, and that with the value's matrix to the output (section 2.1.2), so no head is made of a cached vector.
        """
        # The projection of the identity, not its weight: an adapter may add to what it computes.
        rank = self.sizes.key_value_rank
        keys_LHC, values_LHV = self._content_and_values(torch.eye(rank, dtype=latent.dtype, device=latent.device))
        q = torch.cat((torch.einsum("thc,lhc->thl", q_content, keys_LHC), q_rotated), dim=-1)
        latents = torch.cat((latent[:, None], k_rotated), dim=-1)
        out = cache.attend_latents(self.core.layer, q, latents, rank, packed, self.core.settings)
        return torch.einsum("thl,lhv->thv", out, values_LHV)

    def _latent_and_rotated(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """The vectors [T, rank] that keys and values are made of, and the rotated part of keys [T, 1, R]."""
        latent, rotated = self.kv_a_proj(x).split((self.sizes.key_value_rank, self.sizes.rotated_dim), -1)
        return self.kv_a_norm(latent), rotation.apply(rotated[:, None])

    def _content_and_values(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The content of keys [T, Hq, C] and the values [T, Hq, Dv] that ``latent`` [T, rank] stands for."""
        s = self.sizes
        heads = self.kv_b_proj(latent).unflatten(-1, (-1, s.content_dim + s.value_dim))
        content, values = heads.split((s.content_dim, s.value_dim), -1)
        return content, values

    def _queries(self, x: Tensor) -> Tensor:
        """[T, hidden] to [T, Hq (C + R)]."""
        return self.q_proj(x) if self.sizes.query_rank is None else self.q_b_proj(self.q_a_norm(self.q_a_proj(x)))
