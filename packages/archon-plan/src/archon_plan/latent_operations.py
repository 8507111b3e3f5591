"""The operations of ``archon_engine.nn.latent_attention`` up to core attention, line by line.

Legend: T tokens of a tensor region, h heads of this rank, C content and R rotated elements of a head, Dv size of a
value head.
"""

from __future__ import annotations

from collections.abc import Iterator

from archon_plan.block_sizes import BlockSizes
from archon_plan.layer_operations import linear, norm
from archon_plan.liveness import Operation


def latent_heads(s: BlockSizes, source: str) -> Iterator[Operation]:
    """Queries ``q.rotated``, keys ``k.rotated`` and values ``kv``, which is a part of that result."""
    assert s.latent is not None, "heads are projections of hidden states"
    T, b, rank = s.region_tokens, s.value_bytes, s.latent.key_value_rank
    content = s.key_dim - s.rotated_dim
    queries = s.query_heads * s.key_dim
    if s.latent.query_rank:
        yield linear(s, "q_a", source, T, s.hidden, s.latent.query_rank)
        yield from norm("q_a_norm", "q_a", T, s.latent.query_rank, s)
        yield linear(s, "q", "q_a_norm", T, s.latent.query_rank, queries)
    else:
        yield linear(s, "q", source, T, s.hidden, queries)
    yield linear(s, "kv_a", source, T, s.hidden, rank + s.rotated_dim)
    yield from norm("kv_a_norm", "kv_a", T, rank, s)
    yield linear(s, "kv", "kv_a_norm", T, rank, s.query_heads * (content + s.value_dim))
    rotated = b * T * s.query_heads * s.rotated_dim
    # The rotated part before it is joined to the content, and in backward its gradient, spread over whole heads.
    yield Operation("q.rotated", b * T * queries, ("q",), beside=rotated, behind=2 * rotated)
    yield Operation("k.rotated", b * T * queries, ("kv", "kv_a"), beside=rotated / s.query_heads, behind=rotated)
