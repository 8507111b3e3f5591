"""Packed attention against the formula, written out for one sequence and one head at a time."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from archon_core.contracts.packed import AttentionSettings, PackedSequences
from archon_core.errors import ConfigError
from archon_engine.nn.attention import (
    PackedAttention,
    check_attention_backend,
    choose_attention_backend,
    set_attention_backend,
)
from archon_engine.nn.attention_backends import flex, sdpa, varlen
from archon_engine.nn.attention_backends.buckets import LEAST_FILL, plan_buckets
from archon_engine.nn.ulysses import ContextParallel

lengths_lists = st.lists(st.integers(1, 12), min_size=1, max_size=8).map(tuple)
PLAIN = AttentionSettings(scale=1.0)


def formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: tuple[int, ...],
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T) v over the earlier keys of the same sequence, the last ``window`` of them; the scores capped
    by ``softcap``, and the sum of their exponentials increased by that of the head's sink."""
    out, start, group = q.new_zeros(*q.shape[:2], v.shape[2]), 0, q.shape[1] // k.shape[1]
    for length in lengths:
        for t in range(start, start + length):
            first = start if window is None else max(start, t - window + 1)
            for head in range(q.shape[1]):
                keys, values = k[first : t + 1, head // group], v[first : t + 1, head // group]
                scores = scale * keys @ q[t, head]
                scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
                exponentials = scores.exp()
                total = exponentials.sum() + (0 if sinks is None else sinks[head].exp())
                out[t, head] = exponentials / total @ values
        start += length
    return out


def qkv(tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    sizes = (heads, kv_heads, kv_heads)
    return [torch.randn(tokens, n, dim, dtype=dtype, generator=generator).requires_grad_() for n in sizes]


@given(
    lengths=lengths_lists,
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    dim=st.sampled_from([2, 6, 8]),
    window=st.none() | st.integers(1, 14),
    softcap=st.none() | st.sampled_from([0.4, 30.0]),
    has_sinks=st.booleans(),
    value_dim=st.sampled_from([None, 3, 4]),
)
@settings(max_examples=60, deadline=None)
def test_sdpa_equals_the_formula_in_value_and_gradient(
    lengths: tuple[int, ...],
    kv_heads: int,
    group: int,
    dim: int,
    window: int | None,
    softcap: float | None,
    has_sinks: bool,
    value_dim: int | None,
) -> None:
    q, k, v = qkv(sum(lengths), kv_heads * group, kv_heads, dim)
    v = qkv(sum(lengths), kv_heads, kv_heads, value_dim or dim)[2]
    sinks = torch.linspace(-1, 2, kv_heads * group, dtype=q.dtype).requires_grad_() if has_sinks else None
    packed = PackedSequences.from_lengths(lengths)
    layer = PackedAttention("0", AttentionSettings(scale=0.3, window=window, softcap=softcap, sinks=has_sinks))
    out = layer(q, k, v, packed, sinks)
    expected = formula(q, k, v, lengths, 0.3, window, softcap, sinks)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    upstream = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    of = (q, k, v) if sinks is None else (q, k, v, sinks)
    for found, right in zip(
        torch.autograd.grad(out, of, upstream), torch.autograd.grad(expected, of, upstream), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-10)


def test_a_sequence_attends_the_same_whatever_is_packed_beside_it() -> None:
    lengths = (5, 9, 8, 40, 7, 8)
    q, k, v = qkv(sum(lengths), 4, 2, 8)
    together = sdpa.attend(q, k, v, PackedSequences.from_lengths(lengths), AttentionSettings(0.5)).split(lengths)
    for part, *alone in zip(together, q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        single = sdpa.attend(*alone, PackedSequences.from_lengths((len(part),)), AttentionSettings(0.5))
        torch.testing.assert_close(part, single, rtol=1e-12, atol=1e-12)


def test_a_layout_first_used_without_gradients_serves_training_too() -> None:
    packed = PackedSequences.from_lengths((31, 3, 29))
    q, k, v = qkv(63, 2, 2, 4)
    with torch.inference_mode():
        sdpa.attend(q, k, v, packed, AttentionSettings(0.5))
    sdpa.attend(q, k, v, packed, AttentionSettings(0.5)).sum().backward()
    assert q.grad is not None


def test_no_tokens_give_no_outputs() -> None:
    q, k, v = qkv(0, 2, 1, 4)
    assert sdpa.attend(q, k, v, PackedSequences.from_lengths(()), AttentionSettings(0.5)).shape == (0, 2, 4)


@given(st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0, 3, 50])), max_size=60))
def test_keys_of_a_bucket_are_those_before_its_queries_and_their_own(segments: list[tuple[int, int]]) -> None:
    lengths, before = [length for length, _ in segments], [n for _, n in segments]
    plan = plan_buckets(lengths, before)
    n_keys = [n + length for length, n in segments]
    rows = plan.key_of_row if plan.key_of_row is not None else range(sum(n_keys))
    start = 0
    for bucket in plan.buckets:
        assert bucket.n_key_rows == (bucket.n_before + bucket.length) * len(bucket.sequences)
        for sequence in bucket.sequences:
            assert before[sequence] == bucket.n_before
            assert LEAST_FILL * bucket.length <= lengths[sequence] <= bucket.length
            first, end = sum(n_keys[:sequence]), start + bucket.n_before + bucket.length
            assert list(rows[start : start + n_keys[sequence]]) == list(range(first, first + n_keys[sequence]))
            assert set(rows[start + n_keys[sequence] : end]) <= {first + n_keys[sequence] - 1}
            start = end
    assert start == len(rows)
    assert len({(bucket.n_before, bucket.length) for bucket in plan.buckets}) == len(plan.buckets)


@given(st.lists(st.integers(1, 300), max_size=60))
def test_a_bucket_plan_holds_every_token_once_with_bounded_padding(lengths: list[int]) -> None:
    plan = plan_buckets(lengths)
    assert sorted(s for bucket in plan.buckets for s in bucket.sequences) == list(range(len(lengths)))
    assert sum(bucket.n_rows for bucket in plan.buckets) <= sum(lengths) / LEAST_FILL + 1e-9
    tokens = list(range(sum(lengths)))
    rows = plan.token_of_row if plan.token_of_row is not None else tokens
    row_of_token = plan.row_of_token if plan.row_of_token is not None else tokens
    assert [rows[row] for row in row_of_token] == tokens
    start, ends = 0, [sum(lengths[: i + 1]) for i in range(len(lengths))]
    for bucket in plan.buckets:
        for sequence in bucket.sequences:
            length = lengths[sequence]
            first = ends[sequence] - length
            assert list(rows[start : start + length]) == list(range(first, first + length))
            assert set(rows[start + length : start + bucket.length]) <= {first + length - 1}
            start += bucket.length


def test_sequences_of_one_length_are_not_moved_at_all() -> None:
    plan = plan_buckets([7] * 100)
    assert len(plan.buckets) == 1
    assert plan.token_of_row is None


def test_hundreds_of_short_sequences_take_a_few_calls() -> None:
    assert len(plan_buckets([12 + (i * 7) % 25 for i in range(256)]).buckets) <= 6


def test_a_cache_attends_in_the_backends_place() -> None:
    seen = {}

    def attend(layer, q, k, v, packed, settings):
        seen.update(layer=layer, settings=settings)
        return q + 1

    q, k, v = qkv(3, 2, 2, 4)
    packed = replace(PackedSequences.from_lengths((3,)), cache=SimpleNamespace(attend=attend))
    assert torch.equal(PackedAttention("7", AttentionSettings(0.25, window=5))(q, k, v, packed), q + 1)
    assert seen == {"layer": "7", "settings": AttentionSettings(0.25, window=5)}


@given(lengths=lengths_lists, window=st.none() | st.integers(1, 14), block=st.sampled_from([1, 2, 4]))
def test_flex_key_blocks_are_those_that_some_query_of_the_block_sees(
    lengths: tuple[int, ...], window: int | None, block: int
) -> None:
    sequence = [i for i, length in enumerate(lengths) for _ in range(length)]
    total = len(sequence)
    needed = {
        (q // block, key // block)
        for q in range(total)
        for key in range(q + 1)
        if sequence[q] == sequence[key] and (window is None or q - key < window)
    }
    first = flex.first_key_blocks(lengths, window, block)
    assert needed == {(q, key) for q in range(len(first)) for key in range(first[q], q + 1)}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("window", "softcap", "has_sinks"),
    [(None, None, False), (40, None, False), (150, None, True), (40, 0.7, False), (None, 0.7, True)],
)
def test_flex_equals_sdpa(
    window: int | None, softcap: float | None, has_sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    # Eager FlexAttention runs forward on the CPU; only its compiled form needs CUDA.
    monkeypatch.setattr(flex, "_compiled_flex_attention", lambda: flex_attention)
    lengths = (100, 3, 200, 57)
    q, k, v = (x.detach().float() for x in qkv(sum(lengths), 4, 2, 16))
    packed = PackedSequences.from_lengths(lengths)
    settings = AttentionSettings(scale=0.2, window=window, softcap=softcap, sinks=has_sinks)
    sinks = torch.linspace(-1, 2, 4) if has_sinks else None
    expected = sdpa.attend(q, k, v, packed, settings, sinks)
    torch.testing.assert_close(flex.attend(q, k, v, packed, settings, sinks), expected, rtol=1e-5, atol=1e-5)
    mask = flex._block_mask(lengths, window, 0, q.device)
    first = flex.first_key_blocks(lengths, window)
    assert mask.to_dense()[0, 0].tolist() == [[int(first[i] <= j <= i) for j in range(3)] for i in range(3)]


@pytest.mark.parametrize(("lengths", "n_before"), [((9,), 4), ((7, 1, 5), 6), ((4, 6), 4), ((5, 2), 0)])
@pytest.mark.parametrize(
    "own", [PLAIN, AttentionSettings(0.4, window=3), AttentionSettings(0.4, softcap=0.7, sinks=True)]
)
def test_queries_of_the_last_tokens_alone_get_what_all_queries_give_them(
    lengths: tuple[int, ...], n_before: int, own: AttentionSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdpa, "MOST_MASKED_QUERIES", 2)
    q, k, v = qkv(sum(lengths), 4, 2, 8)
    sinks = torch.linspace(-1, 2, 4, dtype=q.dtype).requires_grad_() if own.sinks else None
    inputs = [x for x in (q, k, v, sinks) if x is not None]
    upstream = torch.randn(sum(lengths) - n_before, 4, 8, dtype=q.dtype, generator=torch.Generator().manual_seed(1))
    out = sdpa.attend(q[n_before:], k, v, PackedSequences.from_lengths(lengths), own, sinks)
    expected = formula(q, k, v, lengths, own.scale, own.window, own.softcap, sinks)[n_before:]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    found, wanted = (torch.autograd.grad(x, inputs, upstream) for x in (out, expected))
    for gradient, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 40])
def test_flex_and_varlen_attend_from_the_last_tokens_alone(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(flex, "_compiled_flex_attention", lambda: flex_attention)
    monkeypatch.setattr(sdpa, "MOST_MASKED_QUERIES", 50)
    lengths, n_before, own = (300, 3, 57), 150, AttentionSettings(scale=0.2, window=window)
    q, k, v = (x.detach().float() for x in qkv(sum(lengths), 4, 2, 16))
    packed = PackedSequences.from_lengths(lengths)
    expected = sdpa.attend(q, k, v, packed, own)[n_before:]
    for backend in (sdpa, flex):
        torch.testing.assert_close(backend.attend(q[n_before:], k, v, packed, own), expected, rtol=1e-5, atol=1e-5)
    mask = flex._block_mask(lengths, window, n_before, q.device)
    assert mask.to_dense().shape[-2:] == (2, 3)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", _stand_in("scale", "window_size", "enable_gqa"))
    short, own = PackedSequences.from_lengths((9, 1, 4)), AttentionSettings(scale=0.2, window=window and 3)
    q, k, v = (x[:14] for x in (q, k, v))
    expected = sdpa.attend(q, k, v, short, own)[5:]
    torch.testing.assert_close(varlen.attend(q[5:], k, v, short, own), expected, rtol=1e-5, atol=1e-5)


def _stand_in(*accepts: str):
    """The formula behind the signature that torch's kernel has, or had, with these options."""

    def kernel(q, k, v, cu_q, cu_k, max_q, max_k, **options):
        assert set(options) <= set(accepts)
        assert k.shape[1] == v.shape[1] == q.shape[1] or options["enable_gqa"]
        lengths, of_queries = (tuple((cu[1:] - cu[:-1]).tolist()) for cu in (cu_k, cu_q))
        assert (max_q, max_k) == (max(of_queries), max(lengths))
        n_before = lengths[0] - of_queries[0]
        assert of_queries[1:] == lengths[1:]
        left, right = options.get("window_size", (-1, 0 if options.get("is_causal") else -1))
        assert right == 0
        # As FlashAttention 2.1 aligns them: the queries of a sequence belong to its last keys.
        q = torch.nn.functional.pad(q, (0, 0, 0, 0, n_before, 0))
        window = None if left < 0 else left + 1
        return formula(q, k, v, lengths, options.get("scale", q.shape[-1] ** -0.5), window)[n_before:]

    import inspect

    positional = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("query", "key")]
    keyword = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in accepts]
    kernel.__signature__ = inspect.Signature([*positional, *keyword])
    return kernel


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("return_aux", "scale", "window_size"), id="torch 2.11"),
        pytest.param(("return_aux", "scale", "window_size", "enable_gqa"), id="torch 2.12"),
    ],
)
@pytest.mark.parametrize("window", [None, 3])
def test_varlen_computes_grouped_heads_with_the_window_scale_and_lengths_on_every_torch(
    window: int | None, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", _stand_in(*options))
    lengths = (4, 1, 6)
    q, k, v = qkv(11, 4, 2, 8)
    packed = PackedSequences.from_lengths(lengths)
    out = varlen.attend(q, k, v, packed, AttentionSettings(0.2, window=window))
    expected = formula(q, k, v, lengths, 0.2, window)
    torch.testing.assert_close(out, expected)
    grad = torch.ones_like(out)
    for found, wanted in zip(
        torch.autograd.grad(out, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_varlen_options_exist_in_the_installed_torch() -> None:
    from torch.nn.attention.varlen import varlen_attn

    assert {"scale", "window_size"} <= varlen._options(varlen_attn)


def test_varlen_without_options_scales_the_queries_and_refuses_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", _stand_in("is_causal"))
    q, k, v = (x.detach() for x in qkv(11, 4, 4, 8))
    packed = PackedSequences.from_lengths((4, 1, 6))
    out = varlen.attend(q, k, v, packed, AttentionSettings(0.2))
    torch.testing.assert_close(out, formula(q, k, v, (4, 1, 6), 0.2))
    with pytest.raises(ConfigError, match="sliding window"):
        varlen.attend(q, k, v, packed, AttentionSettings(0.2, window=2))
    with pytest.raises(ConfigError, match="found a softcap of 50"):
        varlen.attend(q, k, v, packed, AttentionSettings(0.2, softcap=50.0))


@pytest.mark.parametrize(
    ("device", "dtype", "masked", "repeats"),
    [
        ("cpu", torch.float32, True, False),
        ("cuda", torch.bfloat16, False, False),
        ("cuda", torch.bfloat16, True, True),
        ("cuda", torch.float32, False, True),
    ],
)
def test_key_heads_are_repeated_where_only_kernels_without_grouped_heads_would_run(
    device: str, dtype: torch.dtype, masked: bool, repeats: bool
) -> None:
    assert sdpa.repeats_heads(device, dtype, masked=masked) == repeats


@pytest.mark.parametrize("window", [None, 3])
def test_sdpa_with_repeated_key_heads_equals_the_formula_and_its_gradients(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdpa, "repeats_heads", lambda *_, **__: True)
    lengths = (4, 1, 6)
    q, k, v = qkv(11, 4, 2, 8)
    out = sdpa.attend(q, k, v, PackedSequences.from_lengths(lengths), AttentionSettings(0.2, window=window))
    expected = formula(q, k, v, lengths, 0.2, window)
    torch.testing.assert_close(out, expected)
    grad = torch.ones_like(out)
    for found, wanted in zip(
        torch.autograd.grad(out, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "softcap", "expected"),
    [
        ("cpu", torch.bfloat16, 64, None, "sdpa"),
        ("cuda", torch.bfloat16, 64, None, "varlen"),
        ("cuda", torch.float32, 64, None, "sdpa"),
        ("cuda", torch.float16, 20, None, "sdpa"),
        ("cuda", torch.float16, 512, None, "sdpa"),
        ("xpu", torch.bfloat16, 64, None, "sdpa"),
        ("cuda", torch.bfloat16, 64, 50.0, "flex"),
        ("cuda", torch.float64, 64, 50.0, "sdpa"),
        ("cpu", torch.float32, 64, 50.0, "sdpa"),
    ],
)
def test_the_backend_is_chosen_by_device_type_head_and_softcap(
    device: str, dtype: torch.dtype, head_dim: int, softcap: float | None, expected: str
) -> None:
    assert choose_attention_backend(device, dtype, head_dim, AttentionSettings(1.0, softcap=softcap)) == expected


def test_varlen_is_refused_where_scores_are_capped() -> None:
    with pytest.raises(ConfigError, match="it has no softcap, which the model's attention needs; use sdpa"):
        check_attention_backend("varlen", "cuda", torch.bfloat16, 64, [PLAIN, AttentionSettings(1.0, softcap=50.0)])


@pytest.mark.parametrize(
    ("name", "device", "dtype", "message"),
    [
        ("spda", "cpu", torch.float32, "'spda'; did you mean 'sdpa'"),
        ("varlen", "cpu", torch.float32, "needs a CUDA device, found cpu; it computes in bfloat16"),
        ("flex", "cpu", torch.float32, "needs a CUDA device"),
        ("flex", "cuda", torch.float64, "no float64"),
    ],
)
def test_a_backend_that_cannot_run_is_refused(name: str, device: str, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_attention_backend(name, device, dtype, 64)


def test_a_backend_that_can_run_is_accepted_and_set_everywhere() -> None:
    layers = torch.nn.ModuleList([PackedAttention(str(i), PLAIN) for i in range(2)])
    set_attention_backend(layers, check_attention_backend("sdpa", "cpu", torch.float64, 7))
    assert [layer.backend for layer in layers] == ["sdpa", "sdpa"]


@pytest.mark.parametrize("size", [2, 4])
def test_context_ranks_take_the_sinks_of_their_heads(size: int) -> None:
    q, k, v = qkv(9, 4, 4, 8)
    sinks = torch.linspace(-1, 2, 4, dtype=q.dtype).requires_grad_()
    packed = PackedSequences.from_lengths((4, 5))
    layer = PackedAttention("0", AttentionSettings(0.3, sinks=True))

    class WithoutExchange(ContextParallel):
        def gather_sequences(self, *heads: Tensor) -> tuple[Tensor, ...]:
            return tuple(x.chunk(self.size, 1)[self.rank] for x in heads)

        def scatter_sequences(self, out: Tensor) -> Tensor:
            return out

    contexts = [WithoutExchange(None, rank, size) for rank in range(size)]
    of_ranks = [layer(q, k, v, replace(packed, context=context), sinks) for context in contexts]
    whole = layer(q, k, v, packed, sinks)
    torch.testing.assert_close(torch.cat(of_ranks, 1), whole)
    # Each rank has the gradients of its heads' sinks; their sum over ranks is the whole gradient.
    by_rank = sum(torch.autograd.grad(out.square().sum(), sinks, retain_graph=True)[0] for out in of_ranks)
    torch.testing.assert_close(by_rank, torch.autograd.grad(whole.square().sum(), sinks)[0])
