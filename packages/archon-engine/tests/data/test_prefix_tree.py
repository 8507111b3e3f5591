"""The prefix tree of a batch, its packing into micro-batches and its predictions, against the sequences themselves."""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archon_core.contracts.batch import ROUTED_EXPERTS, Batch
from archon_core.contracts.engine_config import MicroBatchSpec
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.packed import SharedPrefixes
from archon_core.errors import DataError
from archon_engine.data.packing import plan_micro_batches
from archon_engine.data.prefix_tree import NO_TOKEN, build_prefix_tree, token_keys
from archon_engine.data.tree_micro_batch import build_tree_micro_batch, pack_tree, plan_predictions, tree_of
from archon_engine.data.tree_packing import Runs, plan_tree_micro_batches
from archon_engine.step.splitting import PipelineNeeds, Splitter

# Few ids, so that sequences share prefixes.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12)


def tree_from(sequences):
    return build_prefix_tree(np.array([i for s in sequences for i in s]), [len(s) for s in sequences])


def prefixes(sequences):
    return {tuple(s[: n + 1]) for s in sequences for n in range(len(s))}


@given(SEQUENCES)
def test_every_distinct_prefix_is_one_token_of_the_tree(sequences):
    tree, ids = tree_from(sequences), np.array([i for s in sequences for i in s])
    assert tree.n_tokens == len(prefixes(sequences))
    prefix_of = {}
    for start, sequence in zip(accumulate(map(len, sequences), initial=0), sequences, strict=False):
        before = NO_TOKEN
        for place, token in enumerate(tree.token_of[start : start + len(sequence)]):
            prefix = tuple(sequence[: place + 1])
            assert prefix_of.setdefault(token, prefix) == prefix
            assert ids[tree.source[token]] == sequence[place]
            assert (tree.depths[token], tree.predecessor[token]) == (place, before)
            before = token
    counts = [sum(tuple(s[: len(p)]) == p for s in sequences) for p in (prefix_of[t] for t in range(tree.n_tokens))]
    assert np.bincount(tree.token_of).tolist() == counts
    assert tree.shares == (max(counts) > 1)


@given(SEQUENCES)
def test_segments_are_in_depth_first_order_and_end_paths_that_lie_before_them(sequences):
    tree = tree_from(sequences)
    ends = list(accumulate(tree.segments))
    assert ends[-1] == tree.n_tokens
    for length, end, path, parent in zip(tree.segments, ends, tree.paths, tree.parents, strict=True):
        assert path[-length:].tolist() == list(range(end - length, end))
        assert (path[-length - 1] if len(path) > length else NO_TOKEN) == parent
        assert (np.diff(path) > 0).all()
        assert tree.depths[path].tolist() == list(range(len(path)))


def test_turns_of_one_conversation_are_one_segment():
    tree = tree_from([[7, 1, 2], [7, 1], [7, 1, 2, 3, 3], [7, 1, 2, 4]])
    assert (tree.segments, tree.parents) == ((5, 1), (NO_TOKEN, 2))


def test_tokens_that_were_routed_to_other_experts_are_split_with_all_that_follow():
    ids, experts = [1, 2, 3, 1, 2, 3], torch.zeros(6, 2, 1, dtype=torch.int16)
    experts[4, 1] = 5
    batch = Batch(torch.tensor(ids), (3, 3), {ROUTED_EXPERTS: experts})
    assert tree_of(batch).n_tokens == 3
    tree = tree_of(batch, replays_routing=True)
    assert (tree.n_tokens, np.bincount(tree.token_of).tolist()) == (5, [2, 1, 1, 1, 1])
    micro_batch = build_tree_micro_batch(batch, (0, 1), tree, OutputRequest(), replays_routing=True, multiple=4)
    recorded = micro_batch.packed.experts[micro_batch.packed.shared.token_of]
    assert torch.equal(recorded, experts)


def test_keys_are_numbers_of_distinct_rows():
    keys = token_keys(np.array([5, 5, 6, 5]), np.array([[[1]], [[-1]], [[1]], [[1]]], dtype=np.int16))
    assert keys[0] == keys[3]
    assert len(set(keys.tolist())) == 3


@given(SEQUENCES, st.integers(1, 4), st.none() | st.integers(9, 30), st.integers(1, 3), st.sampled_from(["ffd", "kk"]))
def test_micro_batches_hold_every_sequence_once_within_the_limit(sequences, n_mbs, limit, divisor, algorithm):
    lengths = [len(s) for s in sequences]
    plan = plan_tree_micro_batches(
        tree_from(sequences), lengths, n_mbs=n_mbs, max_tokens_per_mb=limit, n_mbs_divisor=divisor, algorithm=algorithm
    )
    assert sorted(i for members in plan for i in members) == list(range(len(sequences)))
    assert len(plan) >= n_mbs
    assert len(plan) % divisor == 0
    if limit is not None:
        assert all(len(prefixes([sequences[i] for i in members])) <= limit for members in plan)
    if len(sequences) >= len(plan):
        assert all(plan)


@given(SEQUENCES, st.integers(1, 3), st.integers(1, 3))
def test_groups_stay_together(sequences, granularity, n_mbs):
    sequences = sequences * granularity
    plan = plan_tree_micro_batches(
        tree_from(sequences), [len(s) for s in sequences], granularity=granularity, n_mbs=n_mbs
    )
    for members in plan:
        groups = {i // granularity for i in members}
        assert members == sorted(i for g in groups for i in range(g * granularity, (g + 1) * granularity))


@given(SEQUENCES)
def test_the_size_of_a_run_is_the_number_of_its_distinct_prefixes(sequences):
    tree, bounds = tree_from(sequences), [0, *accumulate(map(len, sequences))]
    runs = Runs([tree.token_of[a:b] for a, b in pairwise(bounds)], tree.n_tokens)
    for start in range(len(sequences)):
        expected = [len(prefixes(sequences[start:end])) for end in range(start + 1, len(sequences) + 1)]
        assert runs.sizes(start).tolist() == expected
        assert runs.sizes(start, 12).tolist() == [size for size in expected if size <= 12]


def test_a_tree_that_is_too_large_is_cut_between_subtrees_where_least_is_shared():
    # Two families of a long prefix, behind one first token: 1 + 2 * (6 + 3 * 2) = 25 tokens.
    families = [[0, *[f] * 6, f, a] for f in (1, 2) for a in (3, 4, 5)]
    sequences = [[*s[:7], 9 + i, s[-1]] for i, s in enumerate(families)]
    tree, lengths = tree_from(sequences), [9] * 6
    assert tree.n_tokens == 25
    assert plan_tree_micro_batches(tree, lengths, max_tokens_per_mb=15) == [[0, 1, 2], [3, 4, 5]]
    assert plan_tree_micro_batches(tree, lengths, max_tokens_per_mb=25) == [[0, 1, 2, 3, 4, 5]]
    # Apart, 27 tokens of one family would not fit.
    assert plan_tree_micro_batches(tree, lengths, n_mbs=2, granularity=3) == [[0, 1, 2], [3, 4, 5]]


def test_micro_batches_of_a_pipeline_have_one_length_whether_they_share_prefixes_or_not():
    batch = Batch.from_sequences([[1, 2, 3], [1, 2, 4, 4], [5, 6, 7, 8, 9]])
    split = Splitter(MicroBatchSpec(n_mbs=2), multiple=4, pipeline=PipelineNeeds(2), shares_prefixes=True)
    plan = split.plan(batch)
    assert plan == [[0, 1], [2]]
    built = split.build(batch, plan, OutputRequest(), split.number_for(3))
    assert [len(one.input_ids) for one in built] == [8, 8, 8]
    assert [one.expansion is None for one in built] == [False, True, True]


def test_sequences_without_common_prefixes_are_packed_as_without_sharing():
    batch = Batch.from_sequences([[first] * length for first, length in enumerate((6, 5, 4, 5))])
    spec = MicroBatchSpec(max_tokens_per_mb=10)
    assert Splitter(spec, shares_prefixes=True).plan(batch) == Splitter(spec).plan(batch) == [[0, 2], [1, 3]]


def test_sequences_that_share_a_template_alone_are_not_packed_as_neighbours():
    # 2 of a template, then 6, 5, 4 and 5 of each: in the order of the tree, 12 hold one sequence or 2 + 5 + 4.
    sequences = [[9, 9, *[first] * length] for first, length in enumerate((6, 5, 4, 5))]
    tree, lengths = tree_from(sequences), [len(s) for s in sequences]
    assert plan_tree_micro_batches(tree, lengths, max_tokens_per_mb=12) == [[0, 2], [1, 3]]
    assert len(plan_tree_micro_batches(tree, lengths, max_tokens_per_mb=12, n_mbs=3)) == 3
    # Counted apart, a micro-batch has room for one of them.
    assert len(plan_micro_batches(lengths, max_tokens_per_mb=12)) == 4


@given(SEQUENCES, st.integers(0, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 2), st.integers(0, 25))
def test_sharing_never_needs_more_micro_batches(sequences, template, granularity, n_mbs, divisor, room):
    sequences = [[9] * template + s for s in sequences] * granularity
    lengths = [len(s) for s in sequences]
    limits = {"n_mbs": n_mbs, "n_mbs_divisor": divisor, "granularity": granularity}
    limits["max_tokens_per_mb"] = granularity * max(lengths) + room
    plan = plan_tree_micro_batches(tree_from(sequences), lengths, **limits)
    assert len(plan) <= len(plan_micro_batches(lengths, **limits))
    assert all(len(prefixes([sequences[i] for i in members])) <= limits["max_tokens_per_mb"] for members in plan)
    assert sum(map(bool, plan)) == min(len(plan), len(sequences) // granularity)


@pytest.mark.parametrize("algorithm", ["ffd", "kk"])
def test_no_sequences_fill_no_micro_batch(algorithm):
    tree = build_prefix_tree(np.empty(0, dtype=np.int64), [])
    for limit in (None, 8):
        plan = plan_tree_micro_batches(tree, [], n_mbs=2, max_tokens_per_mb=limit, algorithm=algorithm)
        assert plan == [[], []]


def test_a_sequence_that_fits_no_micro_batch_is_refused():
    with pytest.raises(DataError, match=r"mb_spec\.max_tokens_per_mb=3: found a sequence of 4 tokens"):
        plan_tree_micro_batches(tree_from([[1, 2], [1, 2, 3, 4]]), [2, 4], max_tokens_per_mb=3)


class Ranks:
    """Rank i holds the i-th part of a pack, or of its blocks in another order."""

    def __init__(self, rank, size, blocks=None):
        self.rank, self.size, self.blocks = rank, size, blocks or range(size)

    def rank_order(self, n_tokens):
        block = n_tokens // len(self.blocks)
        return tuple(range(i * block, (i + 1) * block) for i in self.blocks)


@given(SEQUENCES, st.integers(1, 3), st.data())
def test_every_next_token_is_predicted_once_by_the_rank_that_holds_the_token_before(sequences, size, data):
    tree, ids = tree_from(sequences), np.array([i for s in sequences for i in s])
    n_places = -(-tree.n_tokens // (2 * size)) * 2 * size
    blocks = data.draw(st.permutations(range(2 * size)))
    predicted = np.roll(tree.token_of, -1)
    predicted[np.cumsum([len(s) for s in sequences]) - 1] = NO_TOKEN
    wanted = np.array(data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))))
    predicted[~wanted] = NO_TOKEN
    ranks = [Ranks(rank, size, blocks) for rank in range(size)]
    of_ranks = [plan_predictions(tree, predicted, n_places, context) for context in ranks]
    assert len({len(one.places) for one in of_ranks}) == 1
    held = np.array([i for part in ranks[0].rank_order(n_places) for i in part])
    places = np.concatenate([held[one.places + rank * (n_places // size)] for rank, one in enumerate(of_ranks)])
    targets = np.concatenate([one.targets for one in of_ranks])
    assert (
        len(set(targets[targets >= 0].tolist())) == (targets >= 0).sum() == len(set(predicted[predicted >= 0].tolist()))
    )
    for token, found in enumerate(of_ranks[0].of_tokens):
        assert (found < 0) == (predicted[token] < 0)
        if found >= 0:
            assert places[found] == tree.token_of[token]
            assert ids[tree.source[targets[found]]] == ids[token + 1]


def test_the_pack_of_a_tree_ends_in_padding_that_continues_nothing():
    sequences = [[1, 2, 3], [1, 2, 4, 4], [5]]
    packed = pack_tree(tree_from(sequences), [3, 4, 1], padding=2)
    shared = packed.shared
    assert isinstance(shared, SharedPrefixes)
    assert packed.lengths == (3, 2, 1, 2)
    assert packed.positions.tolist() == [0, 1, 2, 2, 3, 0, 0, 1]
    assert shared.key_tokens.split(shared.key_lengths)[1].tolist() == [0, 1, 3, 4]
    assert (shared.parents, shared.key_lengths, packed.n_padding) == ((-1, 1, -1, -1), (3, 4, 1, 2), 2)
    assert shared.cu_keys.tolist() == [0, 3, 7, 8, 10]
    assert shared.sequence_of.tolist() == [0, 0, 0, 1, 1, 1, 1, 2]
