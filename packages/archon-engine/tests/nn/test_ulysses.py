"""Context-parallel attention against the same attention on whole packs: values, and gradients of every input."""

import pytest
import torch
import torch.distributed as dist

from archon_core.contracts.packed import AttentionSettings, HeadInputs, PackedSequences
from archon_engine import compat
from archon_engine.nn.attention import PackedAttention
from archon_engine.nn.ulysses import ContextParallel, replicate_heads
from archon_testing.worlds import run_world

HEADS = [(4, 4), (8, 4), (8, 2), (8, 1), (24, 12), (12, 6), (12, 3), (24, 3)]
"""(query heads, key heads); some of the latter fewer than context ranks, or no multiple of them."""

PACKS = [(24,), (1, 1, 1, 9), (5, 7, 1, 11), (1,) * 12, (13, 11)]
"""Lengths of 12 and 24 tokens: sequences of one token, sequences over all cuts, cuts on boundaries."""


def tensors(tokens, heads, kv_heads, value_dim):
    generator = torch.Generator().manual_seed(tokens + heads + kv_heads)
    sizes = ((heads, 4), (kv_heads, 4), (kv_heads, value_dim), (heads, value_dim))
    return [torch.randn(tokens, n, d, dtype=torch.float64, generator=generator) for n, d in sizes]


def attend(q, k, v, packed, window, *, hands_over=False):
    attention = PackedAttention("0", AttentionSettings(0.5, window=window))
    return attention(attention.send_queries(q, packed) if hands_over else q, k, v, packed)


def differences():
    """(case, largest difference of this rank's part) for 2, 3 and 4 context ranks."""
    found = []
    for size in (2, 3, 4):
        group = dist.new_group(range(size))
        if dist.get_rank() >= size:
            continue
        context = ContextParallel(group, dist.get_rank(), size)
        for heads, kv_heads in HEADS:
            if heads % size:
                continue
            for i, lengths in enumerate(PACKS):
                for window in (None, 3):
                    # With and without windows, every second pack.
                    hands_over = (i % 2 == 0) == (window is None)
                    case = f"c{size}, {heads} and {kv_heads} heads, {lengths}, window {window}, {hands_over=}"
                    found.append((case, difference(context, heads, kv_heads, lengths, window, hands_over)))
    return found


def difference(context, heads, kv_heads, lengths, window, hands_over):
    packed = PackedSequences.from_lengths(lengths)
    *inputs, upstream = tensors(sum(lengths), heads, kv_heads, value_dim=4)
    whole = [x.clone().requires_grad_() for x in inputs]
    own = [context.local_tokens(x).clone().requires_grad_() for x in inputs]
    expected = attend(*whole, packed, window)
    expected.backward(upstream)
    result = attend(*own, packed.cut(context), window, hands_over=hands_over)
    result.backward(context.local_tokens(upstream))
    pairs = [(result, expected), *((part.grad, x.grad) for part, x in zip(own, whole, strict=True))]
    return max(float((part - context.local_tokens(x)).abs().max()) for part, x in pairs)


def test_cut_tokens_give_the_attention_of_whole_packs_and_its_gradients():
    seen = [set(), set(), set(), set()]
    for rank, found in enumerate(run_world(differences, 4)):
        assert [case for case, error in found if not error < 1e-12] == []
        seen[rank] |= {case for case, _ in found}
    assert len(seen[0]) > len(seen[3]) > 50


class Exchanges(compat.TorchDispatchMode):
    """Counts all-to-alls."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func.name().startswith("_c10d_functional::all_to_all_single")
        return func(*args, **(kwargs or {}))


def heads_of_unequal_size():
    """Keys of another size than values, as in multi-head latent attention: there and back again, with queries that are
    sent first and without."""
    context = ContextParallel(dist.group.WORLD, dist.get_rank(), 2)
    q, k, v, _ = tensors(6, 4, 1, value_dim=3)
    own, found = [context.local_tokens(x) for x in (q, k, v)], []
    for sends_queries in (False, True):
        with Exchanges() as exchanges:
            first = context.send_queries(own[0]) if sends_queries else own[0]
            gathered = context.gather_sequences(first, *own[1:])
        back = context.scatter_sequences(gathered[0])
        # Copies: what a functional collective returns is still on its way, and cannot be sent.
        found.append(([x.clone() for x in gathered], exchanges.number, torch.equal(back, own[0])))
    return found


def test_ranks_get_their_heads_in_order_and_give_them_back():
    q, k, v, _ = tensors(6, 4, 1, value_dim=3)
    for rank, found in enumerate(run_world(heads_of_unequal_size, 2)):
        for (own_q, own_k, own_v), _, is_back in found:
            assert torch.equal(own_q, q[:, 2 * rank : 2 * rank + 2])
            assert torch.equal(own_k, k)
            assert torch.equal(own_v, v)
            assert is_back
        # Only queries that are sent first have an exchange to themselves.
        assert [n_exchanges for _, n_exchanges, _ in found] == [1, 2]


def queries_that_are_used_twice():
    """Once with the same keys and values, and again: an error instead of wrong gradients."""
    context = ContextParallel(dist.group.WORLD, dist.get_rank(), 2)
    q, k, v = (context.local_tokens(x).requires_grad_() for x in tensors(6, 4, 2, value_dim=4)[:3])
    attention, packed = PackedAttention("0", AttentionSettings(0.5)), PackedSequences.from_lengths((6,)).cut(context)
    sent = attention.send_queries(q, packed)
    attention(sent, k, v, packed)
    with pytest.raises(RuntimeError, match="found a result that is received twice"):
        attention(sent, k, v, packed)


def test_queries_that_were_handed_over_are_used_once():
    run_world(queries_that_are_used_twice, 2)


def test_the_gradient_of_a_replicated_head_is_the_sum_of_its_copies():
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(3, 6, 4, dtype=torch.float64)
    copies = replicate_heads(x, 3)
    copies.backward(upstream)
    assert torch.equal(copies, x.detach()[:, [0, 0, 0, 1, 1, 1]])
    torch.testing.assert_close(x.grad, upstream.view(3, 2, 3, 4).sum(2), rtol=0, atol=1e-14)


def test_a_cut_pack_keeps_its_boundaries_and_the_places_of_its_tokens():
    targets = torch.arange(8)
    packed = PackedSequences.from_lengths((3, 5), head=HeadInputs(("logprobs",), targets))
    second = packed.cut(ContextParallel(None, 1, 2))
    assert second.positions.tolist() == [1, 2, 3, 4]
    assert second.head.targets.tolist() == [4, 5, 6, 7]
    assert second.cu_seqlens.tolist() == [0, 3, 8]
    assert (second.lengths, second.max_seqlen) == ((3, 5), 5)
    assert second.local_rows(targets).tolist() == [4, 5, 6, 7]
    assert packed.local_rows(targets) is targets


def test_tokens_that_were_not_padded_are_noticed():
    with pytest.raises(AssertionError, match="7 tokens were not padded for 2 context ranks"):
        ContextParallel(None, 0, 2).local_tokens(torch.arange(7))
