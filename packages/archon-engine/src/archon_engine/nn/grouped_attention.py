"""Grouped-query self-attention with rotary positions (arXiv:2305.13245), as Llama and its many relatives have it.

Tensor ranks hold whole query heads. Where they do not divide the key heads, they exchange outputs of the key and value
projections (``key_heads``).

Legend: T packed tokens, Hq and Hkv heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from archon_core.contracts.packed import AttentionSettings, PackedSequences
from archon_engine.nn.attention import AttentionSinks, PackedAttention
from archon_engine.nn.linear import Linear
from archon_engine.nn.rotary import Rotation


class GroupedQueryAttention(nn.Module):
    """Projections to heads, rotation, core attention, and the projection of its results.

    Args:
        layer: the layer's number.
        settings: of the scores. With sinks, their scores are a parameter here.
        hidden_size: width of the residual stream.
        n_heads: Hq.
        n_kv_heads: Hkv.
        head_dim: D.
        bias: biases on the query, key and value projections.
        output_bias: a bias on the output projection.
        output_gate: the query projection gives a gate beside each head's query, and the head's result is multiplied by
            the gate's sigmoid, as in Qwen3.5.
        head_norm: makes the norm of query heads, and that of key heads, from D; ``None`` for heads without norms.
    """

    def __init__(
        self,
        layer: int,
        settings: AttentionSettings,
        *,
        hidden_size: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        bias: bool = False,
        output_bias: bool = False,
        output_gate: bool = False,
        head_norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.per_head = head_dim * (2 if output_gate else 1)
        self.q_proj = Linear(hidden_size, n_heads * self.per_head, bias=bias)
        self.k_proj = Linear(hidden_size, n_kv_heads * head_dim, bias=bias)
        self.v_proj = Linear(hidden_size, n_kv_heads * head_dim, bias=bias)
        self.o_proj = Linear(n_heads * head_dim, hidden_size, bias=output_bias)
        self.q_norm = head_norm(head_dim) if head_norm else None
        self.k_norm = head_norm(head_dim) if head_norm else None
        self.sinks = AttentionSinks(n_heads) if settings.sinks else None
        self.core = PackedAttention(str(layer), settings)

    def forward(self, x: Tensor, rotation: Rotation, packed: PackedSequences) -> Tensor:
        """[T, hidden] to [T, hidden]."""
        # Head counts come from the projections, which hold fewer heads when they are sharded.
        q, gate = self.q_proj(x).unflatten(-1, (-1, self.per_head)), None
        if self.per_head > self.head_dim:
            q, gate = q.split(self.head_dim, dim=-1)
        if self.q_norm is not None:
            q = self.q_norm(q)
        q = self.core.send_queries(rotation.apply(q), packed)
        k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.k_proj, self.v_proj))
        if self.k_norm is not None:
            k = self.k_norm(k)
        out = self.core(q, rotation.apply(k), v, packed, None if self.sinks is None else self.sinks())
        if gate is not None:
            out = out * torch.sigmoid(gate)
        return self.o_proj(out.flatten(-2))
