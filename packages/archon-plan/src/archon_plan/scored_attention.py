"""The operations of attention that has all scores of its queries in memory, as ``archon_engine``'s ``sdpa`` backend
computes it for sinks, which torch's kernel lacks, line by line (``sdpa._by_scores``).

Long sequences are attended in parts (``masked_parts``). Autograd keeps the weights of all parts, while temporaries
exist for one at a time.

Legend: T tokens of a tensor region, Q queries of a part and K keys of it, in all sequences, h query heads of this rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from archon_plan.block_sizes import FP32, BlockSizes
from archon_plan.liveness import Operation
from archon_plan.masked_parts import MaskedPart

_eager = partial(Operation, eager=True)


def scored_attention(s: BlockSizes, given: tuple[str, ...], *, holds: tuple[str, ...] = ()) -> Iterator[Operation]:
    """Scores, mask, sinks, softmax and mixed values of every part; the last operation is ``attended``.

    Args:
        s: sizes of the block.
        given: names of queries, keys and values, or of fewer results that contain them.
        holds: names of other results that exist until the last operation has run.
    """
    outputs = s.value_bytes * s.region_tokens * s.query_heads * s.value_dim
    parts = [f".{number}" for number in range(len(s.masked))] if len(s.masked) > 1 else [""]
    for name, part in zip(parts, s.masked, strict=True):
        yield from _part(s, part, given, name)
    heads = tuple(f"attended.heads{name}" for name in parts)
    if len(heads) > 1:
        yield _eager("attended.parts", outputs, heads)
    joined = heads if len(heads) == 1 else ("attended.parts",)
    # The arguments, and a list of the results of parts, exist until the functions return.
    yield _eager("attended", outputs, joined, holds=(*holds, *given, *heads))


def _part(s: BlockSizes, part: MaskedPart, given: tuple[str, ...], name: str) -> Iterator[Operation]:
    T, b, h = s.region_tokens, s.value_bytes, s.query_heads
    sequences = T * part.sequences
    Q, K = sequences * part.rows, sequences * part.keys
    scores, sunk = h * Q * part.keys, FP32 * h * Q * (part.keys + 1)
    mask = part.pairs / s.key_ranks
    queries, outputs = b * Q * h * s.key_dim, b * Q * h * s.value_dim
    # Products copy keys and values for every query head, and queries unless there is one sequence alone. Gradients of
    # these copies are summed over the query heads of a key head.
    keys, values = b * K * h * s.key_dim, b * K * h * s.value_dim
    grouped = h != s.key_heads
    alone = round(sequences * s.context_ranks, 6) <= 1
    views = (given[0],) if alone else ()
    copies = (0.0 if alone else queries) + keys
    raw, wide = b * scores, FP32 * scores
    summed = keys if grouped else 0.0
    yield _eager(f"attention.raw{name}", raw, given[:2], views, kept=True, extra=copies, behind=summed)
    yield _eager(f"attention.scores{name}", raw, (f"attention.raw{name}",))
    source = f"attention.scores{name}"
    if b < FP32:
        source = f"attention.wide{name}"
        yield _eager(source, wide, (f"attention.scores{name}",))
    yield _eager(f"attention.masked{name}", wide, (source,), extra=mask, beside=mask + (raw if b < FP32 else 0.0))
    # Names refer to the mask, and to scaled and masked scores, until the function returns.
    yield _eager(f"attention.sunk{name}", sunk, (f"attention.masked{name}",), beside=mask + raw, passes=True)
    weights = f"attention.softmax{name}"
    yield _eager(weights, sunk, (f"attention.sunk{name}",), (weights,), beside=mask + raw + wide)
    behind = wide
    if b < FP32:
        source, weights = weights, f"attended.weights{name}"
        yield _eager(weights, raw, (source,), beside=mask + raw + wide, behind=wide - raw)
        behind = 0.0
    behind += values if grouped else 0.0
    mixed = f"attended.heads{name}"
    yield _eager(mixed, outputs, (weights, given[-1]), (weights,), kept=True, extra=values, behind=behind)
