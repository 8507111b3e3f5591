"""Gathered keys and values against the same attention on whole packs, and how packs are dealt."""

import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist

from archon_core.contracts.packed import AttentionSettings, HeadInputs, PackedSequences, cut_ranges
from archon_engine.data.prefix_tree import build_prefix_tree
from archon_engine.data.tree_micro_batch import pack_tree
from archon_engine.nn.attention import PackedAttention
from archon_engine.nn.dealing import Run, Span, block_costs, deal_blocks, first_depths, runs_of, spans_of
from archon_engine.nn.key_gathering import KeyGathering
from archon_engine.nn.ulysses import ContextParallel
from archon_testing.worlds import run_world

HEADS = {2: (3, 1, 4), 3: (4, 2, 3), 4: (4, 2, 3)}
"""Context ranks -> (query heads, key heads, value dim). Only where groups of two exchange heads are they divided."""

PACKS = [(24,), (5, 7, 1, 11), (1,) * 24, (2, 3, 1, 2, 13, 2, 1)]
"""24 tokens: one sequence, sequences shorter than the number of ranks, cuts on boundaries and inside."""

TREES = [
    ["aaaaabb", "aaaaaccccc", "aaaaacdd", "aae"],
    ["abcdefghijklmnopqrst", "abcd", "abcx"],
    ["ab", "ac", "ad", "aeeee", "aeef", "bbbb", "bbcc", "c"],
]
"""Sequences that share prefixes, of at most 24 tokens with each prefix once: branches within branches, a long path, and
many short ones."""

SETTINGS = [
    AttentionSettings(0.5),
    AttentionSettings(0.5, softcap=2.0),
    AttentionSettings(0.5, window=4, sinks=True),
]


def whole_packs():
    """Packs of 24 tokens by name: sequences end to end, and trees with their padding."""
    packs = {str(lengths): PackedSequences.from_lengths(lengths) for lengths in PACKS}
    return packs | {", ".join(sequences): tree_pack(sequences) for sequences in TREES}


def tree_pack(sequences, n_tokens=24):
    lengths = [len(sequence) for sequence in sequences]
    tree = build_prefix_tree(np.array([ord(letter) for letter in "".join(sequences)]), lengths)
    return pack_tree(tree, lengths, n_tokens - tree.n_tokens)


def tensors(heads, kv_heads, value_dim):
    generator = torch.Generator().manual_seed(heads + kv_heads)
    sizes = ((heads, 4), (kv_heads, 4), (kv_heads, value_dim), (heads, value_dim))
    return [torch.randn(24, n, d, dtype=torch.float64, generator=generator) for n, d in sizes]


def ranks_of(size, group, halves):
    """This rank's places: all gather; then groups of two exchange heads, if ``size`` is 4."""
    rank, whole = dist.get_rank(), ContextParallel(group, dist.get_rank(), size)
    yield "gather", KeyGathering(group, rank, size, whole)
    yield "gather in order", KeyGathering(group, rank, size, whole, in_order=True)
    if size == 4:
        across, within = divmod(rank, 2)
        parts = (
            ContextParallel(halves["across"][within], across, 2),
            ContextParallel(halves["within"][across], within, 2),
        )
        yield "hybrid", KeyGathering(group, rank, size, *parts)
        yield "hybrid in order", KeyGathering(group, rank, size, *parts, in_order=True)


def differences():
    """(case, largest difference of this rank's part) for 2, 3 and 4 context ranks."""
    halves = {
        "across": [dist.new_group([0, 2]), dist.new_group([1, 3])],
        "within": [dist.new_group([0, 1]), dist.new_group([2, 3])],
    }
    found = []
    for size in (2, 3, 4):
        group = dist.new_group(range(size))
        if dist.get_rank() >= size:
            continue
        packs = enumerate(whole_packs().items())
        for (style, context), (i, (name, packed)) in itertools.product(ranks_of(size, group, halves), packs):
            for j, settings in enumerate(SETTINGS):
                hands_over = (i + j) % 2 == 0
                case = f"c{size}, {style}, {name}, {settings}, {hands_over=}"
                found.append((case, difference(context.deal(packed), *HEADS[size], packed, settings, hands_over)))
    return found


def difference(context, heads, kv_heads, value_dim, packed, settings, hands_over):
    attention = PackedAttention("0", settings)
    *inputs, upstream = tensors(heads, kv_heads, value_dim)
    sinks = [torch.linspace(-1, 1, heads, dtype=torch.float64)] if settings.sinks else []
    whole = [x.clone().requires_grad_() for x in (*inputs, *sinks)]
    own = [context.local_tokens(x).clone().requires_grad_() for x in inputs]
    own_sinks = [x.clone().requires_grad_() for x in sinks]
    expected = attention(*whole[:3], packed, *whole[3:])
    expected.backward(upstream)
    cut = packed.cut(context)
    queries = attention.send_queries(own[0], cut) if hands_over else own[0]
    result = attention(queries, *own[1:], cut, *own_sinks)
    result.backward(context.local_tokens(upstream))
    pairs = [(result, expected), *((part.grad, x.grad) for part, x in zip(own, whole, strict=False))]
    found = [float((part - context.local_tokens(x)).abs().max()) for part, x in pairs]
    found.append(float((context.gather_outputs(result) - expected).abs().max()))
    for part, x in zip(own_sinks, whole[3:], strict=True):
        # Ranks have the gradients of their own queries; FSDP2 sums them over ranks, as those of any parameter.
        dist.all_reduce(part.grad, group=context.group)
        found.append(float((part.grad - x.grad).abs().max()))
    return max(found)


def test_cut_tokens_give_the_attention_of_whole_packs_and_its_gradients():
    for rank, found in enumerate(run_world(differences, 4)):
        assert [case for case, error in found if not error < 1e-12] == []
        assert len(found) == (168, 168, 126, 84)[rank]


def place(rank, size, pack, **fields):
    """The place of a rank that gathers over all ``size`` context ranks, without a process group."""
    packed = pack if isinstance(pack, PackedSequences) else PackedSequences.from_lengths(pack)
    return KeyGathering(None, rank, size, ContextParallel(None, rank, size), **fields).deal(packed)


def test_a_single_sequence_is_dealt_as_head_and_tail():
    assert deal_blocks((80,), 4) == (0, 7, 1, 6, 2, 5, 3, 4)
    assert [place(rank, 4, (80,)).places(80) for rank in range(2)] == [
        (range(10), range(70, 80)),
        (range(10, 20), range(60, 70)),
    ]
    # The two middle blocks are neighbours, and become one range.
    assert place(3, 4, (80,)).places(80) == (range(30, 50),)


def test_the_cost_of_a_block_is_its_number_of_visible_pairs():
    assert block_costs((4,), 4) == [1, 2, 3, 4]
    assert block_costs((1, 5, 2), 4) == [1 + 1, 2 + 3, 4 + 5, 1 + 2]
    assert block_costs((3, 9), 2) == [6 + 6, 39]


@pytest.mark.parametrize("lengths", [(960,), (500, 460), (700, 100, 160), (90,) * 10 + (60,), (1,) * 960])
def test_no_rank_has_much_more_work_than_the_mean(lengths):
    for n_ranks in (2, 4, 8, 16):
        costs = block_costs(lengths, 2 * n_ranks)
        order = deal_blocks(lengths, n_ranks)
        assert sorted(order) == list(range(2 * n_ranks))
        loads = [costs[order[2 * rank]] + costs[order[2 * rank + 1]] for rank in range(n_ranks)]
        in_order = [costs[2 * rank] + costs[2 * rank + 1] for rank in range(n_ranks)]
        assert max(loads) <= max(in_order)
        assert max(loads) <= 1.35 * sum(loads) / n_ranks


def test_pairs_of_blocks_have_the_smallest_maximum_of_all_pairs():
    for lengths in [(48,), (10, 38), (40, 8), (7, 7, 7, 7, 20), (30, 2, 16)]:
        costs = block_costs(lengths, 6)
        order = deal_blocks(lengths, 3)
        best = min(
            max(costs[a] + costs[b] for a, b in zip(other[::2], other[1::2], strict=True))
            for other in itertools.permutations(range(6))
        )
        assert max(costs[a] + costs[b] for a, b in zip(order[::2], order[1::2], strict=True)) == best


def test_a_span_reads_keys_from_the_start_of_its_first_sequence():
    spans = spans_of((5, 7, 2, 10), (range(3, 9), range(12, 18)))
    assert spans == (Span(range(3, 9), range(9), (5, 4)), Span(range(12, 18), range(12, 18), (2, 4)))


@pytest.mark.parametrize("sequences", TREES)
def test_the_runs_of_a_rank_see_the_paths_of_their_tokens(sequences):
    packed = tree_pack(sequences)
    shared = packed.shared
    paths, seen = shared.key_tokens.split(shared.key_lengths), {}
    for start, path in zip(packed.cu_seqlens.tolist(), paths, strict=False):
        for depth, token in enumerate(path.tolist()):
            if token >= start:
                seen[token] = path[: depth + 1].tolist()
    costs = [len(seen[token]) for token in range(24)]
    assert block_costs(shared.segments, 6, shared.parents) == [sum(costs[i : i + 4]) for i in range(0, 24, 4)]
    starts = packed.cu_seqlens[:-1].tolist()
    assert first_depths(shared.segments, shared.parents) == [len(seen[token]) - 1 for token in starts]
    held = []
    for rank in range(3):
        context = place(rank, 3, packed)
        part = context.dealt.tree
        runs = runs_of(shared.segments, context.places(24))
        assert part.lengths == tuple(len(run.queries) for run in runs)
        for run, path in zip(runs, part.shared.key_tokens.split(part.shared.key_lengths), strict=True):
            assert path.tolist() == seen[run.queries[-1]]
            assert all(seen[token] == seen[run.queries[-1]][: len(seen[token])] for token in run.queries)
            held += run.queries
        assert context.rank_order(24) == place(0, 3, packed).rank_order(24)
        assert cut_ranges(context.rank_order(24), 8 * rank, 8)[0].start == context.places(24)[0].start
    assert sorted(held) == list(range(24))


def test_a_run_ends_with_the_tokens_of_its_rank():
    assert runs_of((4, 3, 2), (range(2, 5), range(8, 9))) == (
        Run(0, range(2, 4)),
        Run(1, range(4, 5)),
        Run(2, range(8, 9)),
    )


def test_ranks_hold_every_token_once_in_ascending_order():
    for lengths, size in [((24,), 4), ((5, 19), 2), ((3,) * 8, 3)]:
        held = [place(rank, size, lengths).places(24) for rank in range(size)]
        assert sorted(i for ranges in held for part in ranges for i in part) == list(range(24))
        for ranges in held:
            places = [i for part in ranges for i in part]
            assert places == sorted(places)
            assert len(places) == 24 // size


def test_a_cut_pack_names_the_places_of_its_tokens():
    targets = torch.arange(16)
    packed = PackedSequences.from_lengths((16,), head=HeadInputs(("logprobs",), targets))
    context = place(1, 2, (16,))
    cut = packed.cut(context)
    assert cut.positions.tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    context = place(0, 2, (16,))
    cut = packed.cut(context)
    assert cut.positions.tolist() == [0, 1, 2, 3, 12, 13, 14, 15]
    assert cut.head.targets.tolist() == cut.local_places().tolist() == cut.positions.tolist()
    assert cut.local_ranges() == (range(4), range(12, 16))
    assert cut_ranges(cut.local_ranges(), 2, 4) == (range(2, 4), range(12, 14))


def test_models_that_read_neighbours_keep_the_order_of_the_pack():
    context = place(1, 3, (9,), in_order=True)
    assert context.places(9) == (range(3, 6),)
    assert (context.multiple, place(0, 3, (12,)).multiple) == (3, 6)


def test_a_pack_that_was_not_padded_or_dealt_is_noticed():
    with pytest.raises(AssertionError, match="10 tokens were not padded for 4 context ranks"):
        place(0, 4, (10,))
    with pytest.raises(AssertionError, match="a pack of 16 tokens was dealt, not of 8"):
        place(0, 4, (16,)).local_tokens(torch.arange(8))
