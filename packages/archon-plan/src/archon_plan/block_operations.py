"""The operations of decoder blocks as archon-engine and archon-moe compute them.

The tables follow the modules line by line: ``archon_engine.nn.norm``, ``attention``, ``rotary``, ``ulysses``,
``key_heads``, ``swiglu`` and ``tensor_parallel``, and ``archon_moe.block``, ``router``, ``dispatch.all_to_all`` and
``kernels``. Compiled blocks fuse elementwise operations: only what matrix products, attention and collectives read or
write is in memory.

Legend, as in the modules: n tokens of a rank between tensor regions, T tokens inside (n t), H hidden size, D head
dimension, K experts per token, E experts, F intermediate size of an expert on this rank, N rows that reach this rank's
experts, S rows that it sends, M pairs of a row and one of its experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm
from typing import NamedTuple

from archon_plan.operations import INPUT, Operation, Operations, fuse
from archon_plan.routing import distinct_places

FP32, INT64, INT32 = 4, 8, 4


class ExpertSizes(NamedTuple):
    """Experts of a block on one rank. See ``archon_core.models.anatomy.ExpertsAnatomy``."""

    n_experts: int
    top_k: int
    intermediate: float
    shared_intermediate: int
    ep: int
    etp: int
    imbalance: float


class BlockSizes(NamedTuple):
    """A block on one rank: everything that its memory depends on.

    Attributes:
        tokens: n.
        hidden: H.
        query_heads: of this rank; ``key_heads`` likewise, repeated ones counted.
        owned_key_heads: of the key projection on this rank, which can be a part of a head.
        key_dim: size of a query or key head.
        value_dim: size of a value head.
        head_norms: whether query and key heads are normalised.
        intermediate: width of the dense feed-forward block on this rank; 0 without one.
        gated: whether it has a gate.
        experts: ``None`` for a dense block.
        value_bytes: bytes of an activation.
        tensor_ranks: t.
        context_ranks: c.
        compiled: whether elementwise operations are fused.
        on_cpu: whether CPU kernels run.
    """

    tokens: int
    hidden: int
    query_heads: float
    key_heads: float
    owned_key_heads: float
    key_dim: int
    value_dim: int
    head_norms: bool
    intermediate: float
    gated: bool
    experts: ExpertSizes | None
    value_bytes: int
    tensor_ranks: int
    context_ranks: int
    compiled: bool
    on_cpu: bool

    @property
    def region_tokens(self) -> int:
        """T, tokens inside a tensor region."""
        return self.tokens * self.tensor_ranks

    @property
    def input_bytes(self) -> float:
        """Bytes of the hidden states between regions."""
        return float(self.tokens * self.hidden * self.value_bytes)


def block_operations(sizes: BlockSizes) -> Operations:
    """The operations of a block, in order. The first reads ``INPUT``, the last one makes the block's output."""
    operations = tuple(_block(sizes))
    return fuse(operations) if sizes.compiled else operations


def _block(s: BlockSizes) -> Iterator[Operation]:
    stream = s.input_bytes
    yield from norm("attention_norm", INPUT, s.tokens, s.hidden, s)
    yield from _region("attention", "attention_norm", _attention, s)
    yield Operation("after_attention", stream, (INPUT, "attention.out"), passes=True)
    yield from norm("mlp_norm", "after_attention", s.tokens, s.hidden, s)
    if s.experts is None:
        yield from _region("mlp", "mlp_norm", _feed_forward, s)
        summands: tuple[str, ...] = ("mlp.out",)
    else:
        yield from _experts(s, s.experts, "mlp_norm")
        summands = ("experts.out",)
        if s.experts.shared_intermediate:
            yield from _shared_expert(s, s.experts, "mlp_norm")
            summands = ("experts.out", "shared.out")
    yield Operation("output", stream, ("after_attention", *summands), passes=True)


def norm(name: str, source: str, rows: float, width: float, s: BlockSizes) -> Iterator[Operation]:
    """``archon_engine.nn.norm.RMSNorm`` of [rows, width]. The result is called ``name``.

    In 16-bit types the fp32 copy and the normalised values are saved. ``behind`` are, in order, two factors of the
    derivative of the square, a product that is summed to the gradient of the root, and one for that of the weight.
    """
    wide, own = rows * width * FP32, rows * width * s.value_bytes
    if s.compiled:
        yield Operation(name, own, (source,), (source,), extra=rows * FP32, behind=own, fused=True)
        return
    upcast = source
    if s.value_bytes < FP32:
        upcast = f"{name}.fp32"
        yield Operation(upcast, wide, (source,))
    yield Operation(f"{name}.square", wide, (upcast,), (upcast,), behind=2 * wide)
    yield Operation(f"{name}.root", rows * FP32, (f"{name}.square",), (f"{name}.root",))
    yield Operation(f"{name}.scaled", wide, (upcast, f"{name}.root"), (upcast, f"{name}.root"), behind=wide)
    rounded = f"{name}.scaled"
    if s.value_bytes < FP32:
        rounded = f"{name}.rounded"
        yield Operation(rounded, own, (f"{name}.scaled",))
    yield Operation(name, own, (rounded,), (rounded,), behind=own)


def _linear(name: str, source: str, size: float) -> Operation:
    """A projection saves its input."""
    return Operation(name, size, (source,), (source,), kept=True)


def _region(name: str, source: str, inside, s: BlockSizes) -> Iterator[Operation]:
    """A tensor region gathers tokens and scatters the sum over ranks, each in a collective."""
    if s.tensor_ranks == 1:
        yield from inside(s, source, f"{name}.out")
        return
    whole = s.region_tokens * s.hidden * s.value_bytes
    yield Operation(f"{name}.tokens", whole, (source,), kept=True)
    yield from inside(s, f"{name}.tokens", f"{name}.partial")
    yield Operation(f"{name}.out", s.input_bytes, (f"{name}.partial",), kept=True)


def _attention(s: BlockSizes, source: str, result: str) -> Iterator[Operation]:
    T, b, c = s.region_tokens, s.value_bytes, s.context_ranks
    queries = T * s.query_heads * s.key_dim
    keys, values = T * s.key_heads * s.key_dim, T * s.key_heads * s.value_dim
    scale = s.owned_key_heads / s.key_heads
    exchanges = s.owned_key_heads != s.key_heads
    yield _linear("q", source, b * queries)
    yield _linear("k", source, b * keys * scale)
    yield _linear("v", source, b * values * scale)
    key, value = "k", "v"
    if exchanges:
        # Parts that other ranks read, sent, then joined to heads with the features of a token side by side.
        for name, size in (("k", keys), ("v", values)):
            yield Operation(f"{name}.exchanged", b * size, (name,), kept=True, beside=b * size, behind=b * size)
            yield Operation(f"{name}.heads", b * size, (f"{name}.exchanged",))
        key, value = "k.heads", "v.heads"
    query = "q"
    if s.head_norms:
        yield from norm("q_norm", "q", T * s.query_heads, s.key_dim, s)
        yield from norm("k_norm", key, T * s.key_heads, s.key_dim, s)
        query, key = "q_norm", "k_norm"
    for name, given, size in (("q.rotated", query, queries), ("k.rotated", key, keys)):
        # Two products and a sum of half heads each; only cosines and sines, which all layers share, are saved.
        yield Operation(name, b * size, (given,), beside=b * size, behind=b * size * 1.5)
    given = ("q.rotated", "k.rotated", value)
    if c > 1:
        copies = lcm(round(s.key_heads), c) / round(s.key_heads)
        exchanged = b * (queries + copies * (keys + values))
        yield Operation("heads", exchanged, given, kept=True, beside=exchanged, eager=True)
        given = ("heads",)
        keys, values = keys * copies, values * copies
    attended = b * T * s.query_heads * s.value_dim
    normaliser = T * s.query_heads * FP32
    yield Operation(
        "attended",
        attended,
        given,
        (*given, "attended"),
        kept=True,
        extra=normaliser,
        extra_kept=normaliser,
        eager=True,
        behind=0.0 if s.on_cpu else _flash_backward(s, T, queries),
    )
    joined = "attended"
    if c > 1:
        yield Operation("attended.exchanged", attended, ("attended",), kept=True, behind=attended, eager=True)
        yield Operation("attended.tokens", attended, ("attended.exchanged",), eager=True)
        joined = "attended.tokens"
    yield _linear(result, joined, b * T * s.hidden)


def _flash_backward(s: BlockSizes, T: int, queries: float) -> float:
    """Temporaries of flash attention's backward pass (``flash_api.cpp``, ``mha_varlen_bwd``): the gradient of queries
    summed in fp32, a number per row, and, for grouped heads, gradients of keys and values per query head."""
    grouped = s.query_heads != s.key_heads
    return FP32 * (queries + T * s.query_heads) + (2 * s.value_bytes * queries if grouped else 0.0)


def _feed_forward(s: BlockSizes, source: str, result: str) -> Iterator[Operation]:
    yield from _gated(s, source, result, s.region_tokens, s.intermediate, s.gated, prefix="")


def _gated(
    s: BlockSizes, source: str, result: str, tokens: float, width: float, gated: bool, *, prefix: str
) -> Iterator[Operation]:
    """``archon_engine.nn.swiglu.SwiGLU``, and the block without a gate."""
    inner, up = s.value_bytes * tokens * width, f"{prefix}up"
    names = (f"{prefix}gate", f"{prefix}activated", f"{prefix}inner")
    if not gated:
        yield _linear(up, source, inner)
        yield Operation(names[1], inner, (up,), (up,))
        yield _linear(result, names[1], s.value_bytes * tokens * s.hidden)
        return
    yield _linear(names[0], source, inner)
    if s.compiled:
        yield _linear(up, source, inner)
        yield Operation(names[2], inner, (names[0], up), (names[0], up), behind=inner, fused=True)
    else:
        yield Operation(names[1], inner, (names[0],), (names[0],))
        yield _linear(up, source, inner)
        yield Operation(names[2], inner, (names[1], up), (names[1], up))
    yield _linear(result, names[2], s.value_bytes * tokens * s.hidden)


def _shared_expert(s: BlockSizes, e: ExpertSizes, source: str) -> Iterator[Operation]:
    yield from _gated(s, source, "shared.out", s.tokens, e.shared_intermediate, True, prefix="shared.")


def _experts(s: BlockSizes, e: ExpertSizes, source: str) -> Iterator[Operation]:
    """Router, dispatch, grouped products and combine."""
    n, b, H, K, E = s.tokens, s.value_bytes, s.hidden, e.top_k, e.n_experts
    upcast = source
    if b < FP32:
        upcast = "router.fp32"
        yield Operation(upcast, n * H * FP32, (source,))
    # The router's weight in fp32 is saved, too.
    yield Operation("logits", n * E * FP32, (upcast,), (upcast,), kept=True, extra=E * H * FP32 if b < FP32 else 0.0)
    yield Operation("scores", n * E * FP32, ("logits",), ("scores",))
    yield Operation("chosen", n * K * FP32, ("scores",), extra=n * K * INT64, beside=n * K * FP32)
    yield Operation("weights", n * K * FP32, ("chosen",), ("chosen",), extra=n * FP32)

    rows, weights, N = source, "weights", float(n)
    M = n * K * e.imbalance * e.etp
    S = 0.0
    if e.ep * e.etp > 1:
        S = n * distinct_places(E, K, e.ep) * e.etp
        N = S * e.imbalance
        # Saved: the token of every row, and which of its experts are at the receiver.
        yield Operation("rows.sent", S * H * b, (source,), extra=S * (INT64 + K))
        yield Operation("rows", N * H * b, ("rows.sent",), kept=True)
        yield Operation("rows.weights.sent", S * K * FP32, ("weights",), beside=S * K * (FP32 + INT64))
        yield Operation("rows.weights", N * K * FP32, ("rows.weights.sent",), kept=True)
        rows, weights = "rows", "rows.weights"
    else:
        M = n * K
    result = "experts.out" if S == 0.0 else "rows.outputs"
    inner = 2 * b * M * e.intermediate
    yield Operation(
        result,
        N * H * b,
        (rows, weights),
        (rows, weights),
        kept=True,
        extra=inner + M * INT64,
        extra_kept=inner,
        beside=b * M * (2 * H + 2 * e.intermediate),
        behind=_grouped_backward(M, N, H, e.intermediate, b, K),
    )
    if S > 0.0:
        yield Operation("rows.returned", S * H * b, (result,), kept=True)
        yield Operation("rows.fp32", S * H * FP32, ("rows.returned",))
        yield Operation("sums", n * H * FP32, ("rows.fp32",))
        yield Operation("experts.out", n * H * b, ("sums",))


def _grouped_backward(M: float, N: float, H: int, F: float, b: int, K: int) -> float:
    """Temporaries of ``archon_moe.kernels.grouped_mm.backward`` at its peak.

    At the end live: gradients of outputs and the rows of every pair, both terms of the gradient of the rows [M, H];
    activated, h, dh, dup and dgate [M, F]; and indices. Earlier, for the gradient of the weights: gradients of outputs,
    activated, dh, h, and the last two in fp32.
    """
    weights = M * FP32
    last = 4 * b * M * H + 5 * b * M * F + 2 * M * INT64
    early = b * M * H + 3 * b * M * F + 2 * FP32 * M * F + M * INT64
    return max(last, early) + weights
