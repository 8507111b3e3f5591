"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): keys and values of all heads come from one
low-rank vector per token, and queries from another.

A query or key has two parts: its content, and a rotated part that carries the position. The rotated part of keys does
not pass the low-rank projection; all heads share it.

Tensor ranks hold whole heads. The down projections and their norms have the role ``replicated``: every rank applies
them to all tokens, and receives gradients from its own heads.

Legend: T tokens, Hq heads, C content of a head, R rotated elements, Dv size of a value head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from archon_core.contracts.packed import AttentionSettings, PackedSequences
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


class LatentAttention(nn.Module):
    """Multi-head latent attention. A cache receives the keys and values of all heads.

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
        q_content, q_rotated = self._queries(x).unflatten(-1, (-1, s.head_dim)).split((s.content_dim, s.rotated_dim), -1)
        latent, k_rotated = self.kv_a_proj(x).split((s.key_value_rank, s.rotated_dim), -1)
        heads = self.kv_b_proj(self.kv_a_norm(latent)).unflatten(-1, (-1, s.content_dim + s.value_dim))
        k_content, v = heads.split((s.content_dim, s.value_dim), -1)
        q = torch.cat((q_content, rotation.apply(q_rotated)), dim=-1)
        # Attention takes keys by heads, so the shared part is repeated; backward sums over its copies.
        k_rotated = rotation.apply(k_rotated[:, None]).expand(-1, k_content.shape[1], -1)
        out = self.core(q, torch.cat((k_content, k_rotated), dim=-1), v, packed)
        return self.o_proj(out.flatten(-2))

    def _queries(self, x: Tensor) -> Tensor:
        """[T, hidden] to [T, Hq (C + R)]."""
        return self.q_proj(x) if self.sizes.query_rank is None else self.q_b_proj(self.q_a_norm(self.q_a_proj(x)))
