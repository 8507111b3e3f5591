"""The operations of a mixture of experts as archon-moe computes them: ``archon_moe.block``, ``router``,
``dispatch.all_to_all`` and ``kernels``.

Legend, as there: n tokens of a rank between tensor regions, H hidden size, K experts per token, E experts, F
intermediate size of an expert on this rank, N rows that reach this rank's experts, S rows that it sends, M pairs of a
row and one of its experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from archon_plan.block_sizes import FP32, INT64, BlockSizes, ExpertSizes
from archon_plan.liveness import Operation
from archon_plan.routing import distinct_places


def expert_operations(s: BlockSizes, e: ExpertSizes, source: str, result: str) -> Iterator[Operation]:
    """Router, dispatch, grouped products and combine."""
    n, b, H, K = s.tokens, s.value_bytes, s.hidden, e.top_k
    yield from _router(s, e, source)
    F, weights = e.intermediate, 3 * b * (e.n_experts / e.ep) * e.intermediate * H
    if e.ep * e.etp == 1:
        yield _products(result, (source, "weights"), n, n * K, F, weights, s, e)
        return
    S = n * distinct_places(e.n_experts, K, e.ep) * e.etp
    N, M = S * e.imbalance, n * K * e.etp * e.imbalance
    # Saved: rank and token of every row, which share a tensor, and which of its experts are at the receiver.
    # The first two last: the sum of returned rows refers to them without saving them.
    ranks_and_tokens = S * 2 * INT64
    yield _exchange("rows.sent", S * H * b, (source,), extra=ranks_and_tokens + S * K, lasting=ranks_and_tokens)
    yield _exchange("rows", N * H * b, ("rows.sent",), kept=True)
    yield _exchange("rows.weights.sent", S * K * FP32, ("weights",), beside=S * K * (FP32 + INT64))
    yield _exchange("rows.weights", N * K * FP32, ("rows.weights.sent",), kept=True)
    yield _products("rows.outputs", ("rows", "rows.weights"), N, M, F, weights, s, e)
    yield _exchange("rows.returned", S * H * b, ("rows.outputs",), kept=True)
    # Rows and their sums in fp32 exist beside the result if that is narrower.
    widened = (S + n) * H * FP32 if b < FP32 else 0.0
    yield Operation(result, n * H * b, ("rows.returned",), beside=widened, eager=True)


_exchange = partial(Operation, is_dispatch=True, eager=True)


def _router(s: BlockSizes, e: ExpertSizes, source: str) -> Iterator[Operation]:
    """The router computes in fp32, the default of ``moe_router_dtype``, from a copy of its weight."""
    n, b, H, K, E = s.tokens, s.value_bytes, s.hidden, e.top_k, e.n_experts
    given, matrix = source, 0.0
    if b < FP32:
        given, matrix = "router.fp32", float(E * H * FP32)
        yield Operation(given, n * H * FP32, (source,), fused=True)
    yield Operation(
        "logits",
        n * E * FP32,
        (given,),
        (given,),
        kept=True,
        extra=0.0 if s.compiled else matrix,
        behind=matrix,
        weights=b * E * H,
    )
    yield Operation("scores", n * E * FP32, ("logits",), ("scores",))
    yield Operation("chosen", n * K * FP32, ("scores",), extra=n * K * INT64, beside=n * K * FP32, eager=True)
    yield Operation("weights", n * K * FP32, ("chosen",), ("chosen",), extra=n * FP32, eager=True)


def _products(
    name: str, given: tuple[str, str], N: float, M: float, F: float, weights: float, s: BlockSizes, e: ExpertSizes
) -> Operation:
    """``archon_moe.kernels.operation.grouped_experts``: it saves rows, weights, the order of all choices, and the gate
    and up projections."""
    inner = 2 * s.value_bytes * M * F
    return Operation(
        name,
        N * s.hidden * s.value_bytes,
        given,
        given,
        kept=True,
        extra=inner + N * e.top_k * INT64,
        extra_kept=inner,
        beside=s.value_bytes * M * 2 * (s.hidden + F),
        weights=weights,
        behind=_grouped_backward(M, N, s.hidden, F, s.value_bytes, e),
        eager=True,
    )


def _grouped_backward(M: float, N: float, H: int, F: float, b: int, e: ExpertSizes) -> float:
    """Temporaries of ``archon_moe.kernels.grouped_mm.backward`` at its peak, besides the gradients that it returns.

    The gradient of the rows is a sum over the pairs of each. Before it live gradients of outputs and the rows of every
    pair, both terms of the pairs' gradients [M, H]; activated, h, dh, dup and dgate [M, F]; the row and two weights of
    every pair. Where rows have experts of other ranks, the pairs' gradients are copied instead, to append a row of
    zeros, and the sum exists beside the copy with its indices. Earlier, for the gradient of the routing weights, live
    gradients of outputs, activated, dh and h, the last two and their product in fp32.

    A clamped gate makes the factor of the activation, another [M, F]. With biases, that of every pair's down
    projection lives on, and in the end the weighted gradients of outputs in fp32; earlier, for the gradient of the
    routing weights, gradients of outputs, biases and their product in fp32.
    """
    K = e.top_k
    made = N * (H * b + K * FP32)
    last = 4 * b * M * H + 5 * b * M * F
    early = b * M * H + 3 * (b + FP32) * M * F
    if e.clamped:
        last, early = last + b * M * F, early + b * M * F
    if e.biases:
        last += (b + FP32) * M * H
        early = max(early, 2 * b * M * H + 3 * FP32 * M * H + (3 + e.clamped) * b * M * F)
    pairs = M * (INT64 + 2 * FP32)
    if M == N * K:
        return max(last, early) + pairs - made
    copied = last + N * (H * b + 2 * K * INT64 + 3 * INT64)
    return max(copied, early) + pairs - made
