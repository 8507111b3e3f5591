"""The operations of attention that has all scores of a sequence in memory, as ``archon_engine``'s ``sdpa`` backend
computes it for sinks, which torch's kernel lacks, line by line (``sdpa._by_scores``).

Legend: T tokens of a tensor region, L tokens of a sequence, h query heads of this rank, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from archon_plan.block_sizes import FP32, BlockSizes
from archon_plan.liveness import Operation

_eager = partial(Operation, eager=True)


def scored_attention(s: BlockSizes, given: tuple[str, ...]) -> Iterator[Operation]:
    """Scores, mask, sinks, softmax and mixed values; the last operation is ``attended``.

    Args:
        s: sizes of the block.
        given: names of queries, keys and values, or of fewer results that contain them.
    """
    T, b, h, L = s.region_tokens, s.value_bytes, s.query_heads, s.attended
    scores, sunk = T * h * L, FP32 * T * h * (L + 1)
    queries, outputs = b * T * h * s.key_dim, b * T * h * s.value_dim
    # Products copy keys and values for every query head, and queries unless there is one sequence alone. Gradients of
    # these copies are summed over the query heads of a key head.
    grouped = h != s.key_heads
    alone = T * s.context_ranks <= L
    views = (given[0],) if alone else ()
    copies = (0.0 if alone else queries) + queries
    raw, wide = b * scores, FP32 * scores
    summed = queries if grouped else 0.0
    yield _eager("attention.raw", raw, given[:2], views, kept=True, extra=copies, behind=summed)
    yield _eager("attention.scores", raw, ("attention.raw",))
    source = "attention.scores"
    if b < FP32:
        source = "attention.wide"
        yield _eager(source, wide, ("attention.scores",))
    yield _eager("attention.masked", wide, (source,), extra=L * L, beside=raw if b < FP32 else 0.0)
    yield _eager("attention.sunk", sunk, ("attention.masked",), beside=raw, passes=True)
    # Names of the function refer to scaled and to masked scores until it returns.
    yield _eager("attention.softmax", sunk, ("attention.sunk",), ("attention.softmax",), beside=raw + wide)
    weights, behind = "attention.softmax", wide
    if b < FP32:
        weights, behind = "attended.weights", 0.0
        yield _eager(weights, raw, ("attention.softmax",), beside=raw + wide, behind=wide - raw)
    behind += outputs if grouped else 0.0
    yield _eager("attended.heads", outputs, (weights, given[-1]), (weights,), kept=True, extra=outputs, behind=behind)
    yield _eager("attended", outputs, ("attended.heads",))
