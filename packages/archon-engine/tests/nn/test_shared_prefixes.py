"""Layers on a pack that shares prefixes, against the same layers on its sequences, one after the other."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from archon_core.contracts.packed import AttentionSettings, HeadInputs, PackedSequences
from archon_engine.data.prefix_tree import build_prefix_tree
from archon_engine.data.tree_micro_batch import pack_tree
from archon_engine.nn.attention import PackedAttention
from archon_engine.nn.attention_backends import flex, sdpa, varlen
from archon_engine.nn.attention_backends.paths import gather_paths
from archon_engine.nn.head import LanguageModelHead
from archon_engine.nn.key_gathering import part_of_tree

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=7)


def packs(sequences: list[list[int]], padding: int = 0) -> tuple[PackedSequences, PackedSequences]:
    """The pack of the tree, and the pack of the sequences."""
    lengths = [len(s) for s in sequences]
    tree = build_prefix_tree(np.array([i for s in sequences for i in s]), lengths)
    return pack_tree(tree, lengths, padding), PackedSequences.from_lengths(tuple(lengths))


def qkv(n_tokens: int, heads: int, kv_heads: int, dim: int, value_dim: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n_tokens)
    sizes = ((heads, dim), (kv_heads, dim), (kv_heads, value_dim))
    return [torch.randn(n_tokens, *size, dtype=torch.float64, generator=generator).requires_grad_() for size in sizes]


@given(
    sequences=SEQUENCES,
    group=st.integers(1, 2),
    window=st.none() | st.integers(1, 14),
    softcap=st.none() | st.just(0.7),
    has_sinks=st.booleans(),
    value_dim=st.sampled_from([4, 6]),
    most=st.sampled_from([1, 2, 1024]),
)
def test_attention_over_paths_equals_attention_over_sequences_in_value_and_gradient(
    sequences: list[list[int]],
    group: int,
    window: int | None,
    softcap: float | None,
    has_sinks: bool,
    value_dim: int,
    most: int,
) -> None:
    shared, apart = packs(sequences, padding=3)
    token_of = shared.shared.token_of
    parts = qkv(sum(shared.lengths), 2 * group, 2, 4, value_dim)
    sinks = torch.linspace(-1, 2, 2 * group, dtype=torch.float64).requires_grad_() if has_sinks else None
    layer = PackedAttention("0", AttentionSettings(0.4, window=window, softcap=softcap, sinks=has_sinks))
    expected = layer(*(x[token_of] for x in parts), apart, sinks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdpa, "MOST_MASKED_QUERIES", most)
        out = layer(*parts, shared, sinks)[token_of]
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    upstream = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    of = parts if sinks is None else [*parts, sinks]
    found, right = (torch.autograd.grad(x, of, upstream) for x in (out, expected))
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("window", [None, 4])
def test_segments_of_similar_length_after_one_prompt_share_a_call(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    attend = sdpa._attend_masked
    monkeypatch.setattr(
        sdpa, "_attend_masked", lambda q, *rest, **options: calls.append(q.shape) or attend(q, *rest, **options)
    )
    shared, apart = packs([[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 2, 2, 2, 2], [0, 0, 0, 3, 3, 3, 3, 3], [0, 0, 0, 4]])
    parts = qkv(sum(shared.lengths), 2, 1, 4, 4)
    settings = AttentionSettings(0.4, window=window)
    out = sdpa.attend(*parts, shared, settings)[shared.shared.token_of]
    # The first sample with the prompt; those with 4 and 5 tokens; the last one.
    assert sorted(shape[0] for shape in calls) == [1, 1, 2]
    expected = sdpa.attend(*(x[shared.shared.token_of] for x in parts), apart, settings)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    found, right = (torch.autograd.grad(x.sin().sum(), parts) for x in (out, expected))
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-10)


@given(SEQUENCES)
def test_the_places_of_a_tree_say_which_paths_a_token_is_on(sequences: list[list[int]]) -> None:
    packed, _ = packs(sequences)
    shared, n = packed.shared, sum(packed.lengths)
    depths, ends = flex.tree_places(packed.lengths, shared.parents)
    assert torch.equal(depths, packed.positions)
    seen = torch.zeros(n, n, dtype=torch.bool)
    for sequence in range(shared.n_sequences):
        path = shared.token_of[shared.sequence_of == sequence]
        for place, token in enumerate(path):
            seen[token, path[: place + 1]] = True
    keys = torch.arange(n)
    assert torch.equal(seen, (keys <= keys[:, None]) & (keys[:, None] < ends))
    block = 4
    needed = {(int(q) // block, int(k) // block) for q, k in seen.nonzero()}
    assert needed == set(map(tuple, flex.needed_blocks(ends, keys, block).nonzero().tolist()))
    # Of a part, whose queries may have a gap between them.
    places = torch.cat((keys[: n // 3], keys[n // 2 :]))
    needed = {(int(q) // block, int(k) // block) for q, k in seen[places].nonzero()}
    assert needed <= set(map(tuple, flex.needed_blocks(ends, places, block).nonzero().tolist()))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("window", "softcap", "has_sinks"), [(None, None, False), (40, 0.7, True)])
def test_flex_equals_sdpa(
    window: int | None, softcap: float | None, has_sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    # Eager FlexAttention runs forward on the CPU; only its compiled form needs CUDA.
    monkeypatch.setattr(flex, "_compiled_flex_attention", lambda: flex_attention)
    prompt, turn = [1] * 150, [2] * 70
    packed, _ = packs([[*prompt, *turn, 3], [*prompt, *turn, *[4] * 90], [*prompt, *[5] * 140], [6] * 60], padding=9)
    q, k, v = (x.detach().float() for x in qkv(sum(packed.lengths), 4, 2, 16, 16))
    settings = AttentionSettings(scale=0.2, window=window, softcap=softcap, sinks=has_sinks)
    sinks = torch.linspace(-1, 2, 4) if has_sinks else None
    expected = sdpa.attend(q, k, v, packed, settings, sinks)
    torch.testing.assert_close(flex.attend(q, k, v, packed, settings, sinks), expected, rtol=1e-5, atol=1e-5)
    # The queries of one of several ranks that gather keys.
    ranges = (range(20, 200), range(390, 480))
    part, places = (
        part_of_tree(packed, packed.shared, ranges),
        torch.cat([torch.arange(r.start, r.stop) for r in ranges]),
    )
    for backend in (sdpa, flex):
        out = backend.attend(q[places], k, v, part, settings, sinks)
        torch.testing.assert_close(out, expected[places], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
def test_varlen_hands_over_queries_of_segments_and_keys_of_paths(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(q, k, v, cu_q, cu_k, max_q, max_k, *, return_aux=None, scale, window_size, enable_gqa):
        """The kernel's rule: the last query sees the last key, and as many before it as the window says."""
        n_q, n_k = (cu[1:] - cu[:-1] for cu in (cu_q, cu_k))
        assert (max_q, max_k, window_size[1]) == (int(n_q.max()), int(n_k.max()), 0)
        outs = []
        for own, keys, values in zip(q.split(n_q.tolist()), k.split(n_k.tolist()), v.split(n_k.tolist()), strict=True):
            distance = torch.arange(len(own))[:, None] + len(keys) - len(own) - torch.arange(len(keys))
            seen = (distance >= 0) & (distance <= (window_size[0] if window_size[0] >= 0 else len(keys)))
            scores = torch.einsum("qhd,khd->hqk", own, keys.repeat_interleave(2, 1)) * scale
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            outs.append(torch.einsum("hqk,khd->qhd", weights, values.repeat_interleave(2, 1)))
        return torch.cat(outs)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    assert "enable_gqa" in inspect.signature(kernel).parameters
    packed, _ = packs([[1, 1, 2, 2], [1, 1, 3], [1, 1, 2, 2, 5, 5], [4]], padding=2)
    parts = qkv(sum(packed.lengths), 4, 2, 4, 4)
    settings = AttentionSettings(0.3, window=window)
    out, expected = (backend.attend(*parts, packed, settings) for backend in (varlen, sdpa))
    torch.testing.assert_close(out, expected)
    places = [1, 2, 3, 7, 8]
    part = part_of_tree(packed, packed.shared, (range(1, 4), range(7, 9)))
    out = varlen.attend(parts[0][places], *parts[1:], part, settings)
    torch.testing.assert_close(out, expected[places])


def test_gradients_of_shared_keys_are_summed_in_fp32() -> None:
    x = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    out = gather_paths(x, torch.zeros(400, dtype=torch.int64))
    out.backward(torch.full_like(out, 1.0))
    assert x.grad.item() == 400  # in bfloat16, the sum would stay at 256


def test_a_place_predicts_every_token_that_follows_it() -> None:
    torch.manual_seed(0)
    head = LanguageModelHead(6, 11).double()
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    places, targets = torch.tensor([0, 2, 2, 3]), torch.tensor([5, 1, 10, -1])
    names = ("logprobs", "entropy", "logits")
    found = head(hidden, HeadInputs(names, targets, temperature=0.7, places=places))
    logits = head.weight.detach() @ hidden.detach().T / 0.7
    rows = logits.T.log_softmax(-1)
    torch.testing.assert_close(found["logprobs"][:3].detach(), rows[[0, 2, 2], [5, 1, 10]])
    torch.testing.assert_close(found["entropy"][:3].detach(), -(rows.exp() * rows).sum(-1)[[0, 2, 2]])
    assert (found["logprobs"][3].item(), found["entropy"][3].item()) == (0, 0)
    torch.testing.assert_close(found["logits"].detach(), logits.T)
    found["logprobs"].sum().backward()
    assert hidden.grad[1].eq(0).all()
    assert hidden.grad[2].ne(0).any()
