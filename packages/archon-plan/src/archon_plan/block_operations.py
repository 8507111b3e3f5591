"""The operations of decoder blocks as archon-engine computes them, line by line: ``archon_engine.nn.attention``,
``rotary``, ``rotate``, ``ulysses``, ``key_heads``, ``swiglu``, ``gated_silu`` and ``tensor_parallel``.

Compiled blocks fuse elementwise operations: only what matrix products, attention and collectives read or write is in
memory.

Legend: n tokens of a rank between tensor regions, T tokens inside (n t), H hidden size, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from math import lcm

from archon_plan.block_sizes import FP32, BlockSizes
from archon_plan.delta_operations import delta_operations
from archon_plan.expert_operations import expert_operations
from archon_plan.latent_operations import latent_heads
from archon_plan.layer_operations import linear, norm, tile_of
from archon_plan.liveness import INPUT, Operation, Operations
from archon_plan.scored_attention import scored_attention


def block_operations(sizes: BlockSizes) -> Operations:
    """The operations of a block, in order. The first reads ``INPUT``, the last one makes the block's output."""
    operations = tuple(_block(sizes))
    assert len({operation.name for operation in operations}) == len(operations), "two operations have the same name"
    return operations


def _block(s: BlockSizes) -> Iterator[Operation]:
    stream = s.input_bytes
    # A compiled block is two graphs, before and after attention. Both save the residual stream that they norm, and the
    # first one also the norm's result, under any budget (measured with torch 2.13).
    yield from norm("attention_norm", INPUT, s.tokens, s.hidden, s, stays=True)
    yield from _region("attention", "attention_norm", _attention, s)
    yield Operation("after_attention", stream, (INPUT, "attention.out"), passes=True, stays=True)
    yield from norm("mlp_norm", "after_attention", s.tokens, s.hidden, s)
    if s.experts is None:
        yield from _region("mlp", "mlp_norm", _feed_forward, s)
        summands: tuple[str, ...] = ("mlp.out",)
    else:
        yield from expert_operations(s, s.experts, "mlp_norm", "experts.out")
        summands = ("experts.out",)
        if s.experts.shared_intermediate:
            width = s.experts.shared_intermediate
            shared = "shared.ungated" if s.experts.shared_gate else "shared.out"
            yield from _gated(s, "mlp_norm", shared, s.tokens, width, True, prefix="shared.")
            if s.experts.shared_gate:
                yield linear(s, "shared.scores", "mlp_norm", s.tokens, s.hidden, 1)
                yield Operation("shared.share", s.tokens * s.value_bytes, ("shared.scores",), ("shared.share",))
                factors = (shared, "shared.share")
                yield Operation("shared.out", stream, factors, factors, behind=stream)
            summands = ("experts.out", "shared.out")
    yield Operation("output", stream, ("after_attention", *summands), passes=True)


def _region(
    name: str, source: str, inside: Callable[[BlockSizes, str, str], Iterator[Operation]], s: BlockSizes
) -> Iterator[Operation]:
    """A tensor region gathers tokens and scatters the sum over ranks, each in a collective."""
    if s.tensor_ranks == 1:
        yield from inside(s, source, f"{name}.out")
        return
    whole = s.region_tokens * s.hidden * s.value_bytes
    yield Operation(f"{name}.tokens", whole, (source,), kept=True)
    yield from inside(s, f"{name}.tokens", f"{name}.partial")
    yield Operation(f"{name}.out", s.input_bytes, (f"{name}.partial",), kept=True)


def _attention(s: BlockSizes, source: str, result: str) -> Iterator[Operation]:
    if s.filter_length:
        yield from delta_operations(s, source, result)
        return
    if s.latent is not None:
        yield from latent_heads(s, source)
        yield from _core(s, ("q.rotated", "k.rotated", "kv"), result)
        return
    key, value = yield from _heads(s, source)
    yield from _core(s, ("q.rotated", "k.rotated", value), result, holds=(key,))


def _heads(s: BlockSizes, source: str) -> Generator[Operation, None, tuple[str, str]]:
    """Queries ``q.rotated``, keys ``k.rotated`` and values. Returns the names of keys before rotation and of values."""
    T, b = s.region_tokens, s.value_bytes
    queries = T * s.query_heads * s.key_dim
    keys, values = T * s.key_heads * s.key_dim, T * s.key_heads * s.value_dim
    exchanges = s.owned_key_heads != s.key_heads
    yield linear(s, "q", source, T, s.hidden, s.query_heads * s.key_dim * (2 if s.output_gate else 1))
    yield linear(s, "k", source, T, s.hidden, s.owned_key_heads * s.key_dim)
    yield linear(s, "v", source, T, s.hidden, s.owned_key_heads * s.value_dim)
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
        # Saved are only cosines and sines, which all layers share.
        if s.rotated_dim < s.key_dim:
            # The rotated part, before it is joined to the rest, and its gradient; and a product with the sines, which
            # compiled graphs make of halves.
            part = b * size * s.rotated_dim / s.key_dim * (1.5 if s.compiled else 2)
            yield Operation(name, b * size, (given,), beside=part, behind=part)
            continue
        if s.compiled:
            # Beside: the halves before they are joined. Behind: gradients of both halves, and a product.
            yield Operation(name, b * size, (given,), beside=b * size, behind=b * size * 1.5)
            continue
        # The product of a tile with the sines.
        turned = b * tile_of(T, size / T, s)[0]
        yield Operation(name, b * size, (given,), beside=turned, behind=turned)
    return key, value


def _core(s: BlockSizes, given: tuple[str, ...], result: str, *, holds: tuple[str, ...] = ()) -> Iterator[Operation]:
    """Core attention and the output projection. ``holds`` are results that the caller has names for."""
    T, b, c, groups = s.region_tokens, s.value_bytes, s.head_ranks, s.key_ranks
    queries = T * s.query_heads * s.key_dim
    keys, values = T * s.key_heads * s.key_dim, T * s.key_heads * s.value_dim
    copies = 1.0
    if c > 1:
        copies = lcm(round(s.key_heads), c) / round(s.key_heads)
        of_queries, of_keys = b * queries, b * copies * (keys + values)
        if s.sends_queries:
            # Queries have an exchange, and keys with values another one (``archon_engine.nn.ulysses``).
            yield Operation("queries.heads", of_queries, given[:1], kept=True, beside=of_queries, eager=True)
            yield Operation("keys.heads", of_keys, given[1:], kept=True, beside=of_keys, eager=True)
            given = ("queries.heads", "keys.heads")
        else:
            # One result has them all.
            of_all = of_queries + of_keys
            yield Operation("heads", of_all, given, kept=True, beside=of_all, eager=True)
            given = ("heads",)
    if groups > 1:
        own = b * copies * (keys + values)
        # Sent side by side, received in the order of the ranks, then put in that of the pack.
        yield Operation(
            "keys.gathered", groups * own, given[1:] or given, kept=True, beside=own, behind=own, eager=True
        )
        yield Operation("keys", groups * own, ("keys.gathered",), behind=groups * own, eager=True)
        given = (given[0], "keys")
    if s.path_keys:
        # Backward sums the gradients of a key in fp32. On a CPU, first samples and further ones are attended apart, so
        # their gradients are joined first.
        along = b * copies * s.path_keys
        summed = FP32 * copies * keys * (1 + s.path_keys) if b < FP32 else 0.0
        behind = summed + (along * keys if s.on_cpu else 0.0)
        yield Operation("keys.paths", along * (keys + values), given[1:] or given, behind=behind, eager=True)
        given = (given[0], "keys.paths")
    if s.value_dim < s.key_dim:
        # Fused kernels take heads of one size (``archon_engine.nn.attention_backends``).
        padded = b * groups * copies * T * s.key_heads * s.key_dim * (s.path_keys or 1.0)
        yield Operation("v.padded", padded, (given[-1],), eager=True)
        given = (*given, "v.padded") if c > 1 or groups > 1 or s.path_keys else (*given[:-1], "v.padded")
    attended = b * T * s.query_heads * max(s.value_dim, s.key_dim)
    if s.sinks and s.on_cpu:
        yield from scored_attention(s, given, holds=holds)
    else:
        normaliser = T * s.query_heads * FP32
        masks = b * s.mask_elements
        yield Operation(
            "attended",
            attended,
            given,
            (*given, "attended"),
            kept=True,
            extra=normaliser + masks,
            extra_kept=normaliser,
            eager=True,
            behind=0.0 if s.on_cpu else _flash_backward(s, T, queries),
        )
    joined, outputs = "attended", b * T * s.query_heads * s.value_dim
    if s.value_dim < s.key_dim:
        yield Operation("attended.values", outputs, ("attended",), behind=attended, eager=True)
        joined = "attended.values"
    if not all(part.ends for part in s.masked) and not s.sinks:
        # Rows of parts, head by head, then the heads of a token side by side.
        yield Operation("attended.parts", outputs, (joined,), eager=True)
        yield Operation("attended.rows", outputs, ("attended.parts",), eager=True)
        joined = "attended.rows"
    if groups > 1 or (s.path_keys and s.on_cpu):
        # Two blocks of a rank, or first and further samples, are attended apart. On a CPU, the second block also has a
        # mask, left out here.
        yield Operation("attended.joined", outputs, (joined,), eager=True)
        joined = "attended.joined"
    if c > 1:
        yield Operation("attended.exchanged", outputs, (joined,), kept=True, behind=outputs, eager=True)
        yield Operation("attended.tokens", outputs, ("attended.exchanged",), eager=True)
        joined = "attended.tokens"
    if s.output_gate:
        # The gate is the second half of a result that the norm of the queries has saved.
        yield Operation("attended.gated", outputs, (joined, "q"), (joined,), extra=outputs, behind=outputs)
        joined = "attended.gated"
    yield linear(s, result, joined, T, s.query_heads * s.value_dim, s.hidden)


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
    gate, joined = f"{prefix}gate", f"{prefix}inner"
    if not gated:
        activated = f"{prefix}activated"
        yield linear(s, up, source, tokens, s.hidden, width)
        yield Operation(activated, inner, (up,), (up,))
        yield linear(s, result, activated, tokens, width, s.hidden)
        return
    yield linear(s, gate, source, tokens, s.hidden, width)
    yield linear(s, up, source, tokens, s.hidden, width)
    if s.compiled:
        yield Operation(joined, inner, (gate, up), (gate, up), behind=inner, fused=True)
    else:
        # The activation of a tile, and in backward the gradient of one.
        tile, several = tile_of(tokens, width, s)
        tile *= s.value_bytes
        yield Operation(joined, inner, (gate, up), (gate, up), beside=tile if several else 0.0, behind=tile)
    yield linear(s, result, joined, tokens, width, s.hidden)
