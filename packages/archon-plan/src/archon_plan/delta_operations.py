"""The operations of ``archon_engine.nn.gated_delta_net`` with its rule in plain PyTorch, line by line.

The kernels of ``fla`` keep less: where they run, this is an upper bound.

Legend: T tokens of a tensor region, h heads of this rank, hk its key heads, K and V key and value dimension, L filter
length, N chunks, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from archon_plan.block_sizes import FP32, INT64, BlockSizes
from archon_plan.layer_operations import linear, norm
from archon_plan.liveness import Operation


def delta_operations(s: BlockSizes, source: str, result: str) -> Iterator[Operation]:
    """From normed hidden states to the output projection."""
    T, b, h = s.region_tokens, s.value_bytes, s.query_heads
    keys, values = s.key_heads * s.key_dim, h * s.value_dim
    features = 2 * keys + values
    for name, made in (("query", keys), ("key", keys), ("value", values)):
        yield linear(s, name, source, T, s.hidden, made)
    yield Operation("qkv", b * T * features, ("query", "key", "value"), eager=True)
    of_heads = FP32 * T * h
    yield linear(s, "decay.in", source, T, s.hidden, h)
    # Saved: what softplus reads, and its result.
    yield Operation("decay", of_heads, ("decay.in",), extra=2 * of_heads)
    yield linear(s, "beta.in", source, T, s.hidden, h)
    yield Operation("beta", b * T * h, ("beta.in",), ("beta",))
    yield from _convolution(s, features)
    yield from _rule(s, "qkv.activated")
    yield from norm("normed", "mixed", T * h, s.value_dim, s)
    yield linear(s, "output.gate", source, T, s.hidden, values)
    wide = FP32 * T * values
    factors = ("normed", "output.gate")
    # Saved are both factors and the activation of the gate, the factors in fp32 too.
    saves, copies = (factors, 1) if b >= FP32 else ((), 3)
    yield Operation(
        "gated", b * T * values, factors, saves, extra=copies * wide, beside=wide, behind=2 * wide, holds=("qkv",)
    )
    yield linear(s, result, "gated", T, values, s.hidden)


def _convolution(s: BlockSizes, features: float) -> Iterator[Operation]:
    T, b = s.region_tokens, s.value_bytes
    rows = T + (s.filter_length - 1) * s.segments
    wide = FP32 * rows * features
    given = "extended"
    yield Operation("extended", b * rows * features, ("qkv",), beside=b * rows * features, extra=T * INT64, eager=True)
    if b < FP32:
        given = "extended.wide"
        yield Operation(given, wide, ("extended",), eager=True)
    # Beside: a product, and the sum before it is added.
    yield Operation("windows", wide, (given,), (given,), beside=2 * wide, behind=2 * wide, eager=True)
    narrow = FP32 * T * features if b < FP32 else 0.0
    yield Operation(
        "convolved", b * T * features, ("windows",), extra=T * INT64, beside=narrow, behind=narrow, eager=True
    )
    yield Operation("qkv.activated", b * T * features, ("convolved",), ("convolved",), eager=True)


def _rule(s: BlockSizes, source: str) -> Iterator[Operation]:
    T, b, h, N = s.region_tokens, s.value_bytes, s.query_heads, s.chunks
    rows = FP32 * N * s.chunk * h
    of_keys, of_values, pairs = rows * s.key_dim, rows * s.value_dim, rows * s.chunk
    states = FP32 * N * h * s.key_dim * s.value_dim
    before: tuple[str, ...] = ()
    if s.context_ranks > 1:
        yield from _states_from_ranks(s, source)
        before = ("state",)
    yield from _normal(s, "q", source, N)
    yield from _corrections(s, "", source, N)
    yield _eager("q.scaled", of_keys, ("q.normal",))
    yield _eager("qk", pairs, ("q.scaled", "k.normal"), ("q.scaled", "k.normal"), kept=True)
    yield _eager("within", pairs, ("qk", "pairwise"), ("qk", "pairwise"))
    yield _eager("q.decayed", of_keys, ("q.scaled",), ("q.scaled",), extra=rows)
    saved = ("solved", "within", "q.decayed", "k.decayed")
    yield _eager(
        "scanned",
        of_values,
        (*saved, *before),
        saved,
        # Of every step: the corrected values and the state before it.
        extra=of_values + states,
        # Results of products: reads of the state for corrections and outputs, mixed values, and what is written.
        extra_kept=3 * of_values + states,
        behind=of_keys + of_values,
    )
    beside = of_values + FP32 * T * h * s.value_dim
    yield _eager("mixed", b * T * h * s.value_dim, ("scanned",), beside=beside, holds=("qkv", source))


def _states_from_ranks(s: BlockSizes, source: str) -> Iterator[Operation]:
    """The map of the last segment's state, and the state that ranks before this one leave."""
    N, h, key = s.chunks / s.segments, s.query_heads, s.key_dim
    of_state = FP32 * h * key * (key + s.value_dim)
    yield from _corrections(s, "map.", source, N)
    saved = ("map.solved", "map.k.decayed")
    extra = N * (FP32 * s.chunk * h * (key + s.value_dim) + of_state)
    yield _eager("map", of_state, saved, saved, extra=extra, extra_kept=extra)
    maps = s.context_ranks * of_state
    yield _eager("maps", maps, ("map",), kept=True)
    yield _eager("state", s.segments * FP32 * h * key * s.value_dim, ("maps",), ("maps",), behind=maps)


def _normal(s: BlockSizes, name: str, source: str, N: float) -> Iterator[Operation]:
    """Queries or keys of length 1 in chunks."""
    rows = FP32 * N * s.chunk * s.query_heads
    whole = rows * s.key_dim
    yield _chunked(s, f"{name}.chunked", s.key_dim, source, N)
    given = (f"{name}.chunked",)
    yield _eager(f"{name}.normal", whole, given, given, extra=rows, beside=whole, behind=whole)


def _chunked(s: BlockSizes, name: str, width: int, source: str, N: float) -> Operation:
    """Beside: the tokens in fp32, and chunks before their heads are moved to the front."""
    size = FP32 * N * s.chunk * s.query_heads * width
    wide = size if s.value_bytes < FP32 else 0.0
    return _eager(name, size, (source,), beside=size + wide, behind=size)


def _corrections(s: BlockSizes, prefix: str, source: str, N: float) -> Iterator[Operation]:
    """Chunks of keys and values, decays between tokens, and the triangular system of corrections."""
    rows = FP32 * N * s.chunk * s.query_heads
    of_keys, of_values, pairs = rows * s.key_dim, rows * s.value_dim, rows * s.chunk

    def named(*names: str) -> tuple[str, ...]:
        return tuple(prefix + name for name in names)

    def made(
        name: str, size: float, reads: tuple[str, ...], saves: tuple[str, ...] | None = None, **more: float
    ) -> Operation:
        return _eager(prefix + name, size, reads, reads if saves is None else saves, **more)

    yield from _normal(s, f"{prefix}k", source, N)
    yield _chunked(s, f"{prefix}v.chunked", s.value_dim, source, N)
    yield made("pairwise", pairs, ("decay",), named("pairwise"), extra=4 * rows, beside=2 * pairs, behind=2 * pairs)
    yield made("k.beta", of_keys, (*named("k.normal"), "beta"), named("k.normal"))
    yield made("kk", pairs, named("k.beta", "k.normal"), kept=True)
    yield made("system", pairs, named("kk", "pairwise"))
    both = of_keys + of_values
    yield made("both", both, named("v.chunked", "k.beta"), beside=both, behind=both)
    yield made("solved", both, named("system", "both"), named("system", "solved"), behind=both)
    yield made("k.decayed", of_keys, named("k.normal", "pairwise"), behind=of_keys)


def _eager(name: str, size: float, reads: tuple[str, ...], saves: tuple[str, ...] = (), **more: Any) -> Operation:
    """Compiled blocks leave the rule eager."""
    return Operation(name, size, reads, saves, eager=True, **more)
