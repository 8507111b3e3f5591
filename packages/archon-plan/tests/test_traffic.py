"""Formulas of traffic, against enumeration and by hand. ``tests/plan/test_traffic.py`` compares them with engines."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from archon_core.contracts.pipeline import Action, StagePlan
from archon_core.layout.dims import ParallelDims
from archon_core.models.anatomy import AttentionAnatomy, ExpertsAnatomy, LayerAnatomy, ModelAnatomy, WeightShape
from archon_core.models.parallel_plan import HeadCounts
from archon_core.models.stage import Stage
from archon_plan.expert_traffic import share_of_place
from archon_plan.pipelined_weights import Gathers, StageActions, count_gathers, count_reductions
from archon_plan.publication import publication_bytes
from archon_plan.results import Transfer
from archon_plan.setting import Setting, Tokens
from archon_plan.token_traffic import heads_exchanged, key_heads_sent
from archon_plan.traffic import transfers

HIDDEN, INNER, VOCABULARY, LAYERS = 1024, 4096, 32768, 6
ATTENTION = AttentionAnatomy(HeadCounts(16, 8), 64, 64)


def layer() -> LayerAnatomy:
    keys = 8 * 64
    return LayerAnatomy(
        weights=(
            WeightShape("attention.q_proj.weight", (HIDDEN, HIDDEN), "column", 0),
            WeightShape("attention.k_proj.weight", (keys, HIDDEN), "column", 0),
            WeightShape("attention.v_proj.weight", (keys, HIDDEN), "column", 0),
            WeightShape("attention.o_proj.weight", (HIDDEN, HIDDEN), "row", 1),
            WeightShape("mlp.gate_proj.weight", (INNER, HIDDEN), "column", 0),
            WeightShape("mlp.up_proj.weight", (INNER, HIDDEN), "column", 0),
            WeightShape("mlp.down_proj.weight", (HIDDEN, INNER), "row", 1),
        ),
        attention=ATTENTION,
        intermediate_size=INNER,
    )


MODEL = ModelAnatomy(
    hidden_size=HIDDEN,
    vocab_size=VOCABULARY,
    embed=(WeightShape("embed.weight", (VOCABULARY, HIDDEN), "vocabulary", 0),),
    layers=tuple(layer() for _ in range(LAYERS)),
    last=(WeightShape("head.weight", (VOCABULARY, HIDDEN), "vocabulary", 0),),
)
"""All of its weights are sharded evenly over tensor ranks."""


def only(setting: Setting, axis: str, collective: str, purpose: str) -> Transfer:
    [found] = [
        transfer
        for transfer in transfers(setting)
        if (transfer.axis, transfer.collective, transfer.purpose) == (axis, collective, purpose)
    ]
    return found


def test_one_rank_sends_nothing():
    assert transfers(Setting(MODEL, ParallelDims(), Tokens(4096))) == ()


def test_sharded_weights_follow_the_formula_of_fsdp():
    n_micro_batches, s, t, r = 3, 8, 2, 4
    dims = ParallelDims(dp_replicate=r, dp_shard=4, cp=2, tp=t)
    setting = Setting(MODEL, dims, Tokens(4096, n_micro_batches))
    n, head = MODEL.n_parameters / t, VOCABULARY * HIDDEN / t
    gathered = only(setting, "fsdp", "all_gather", "weights")
    # In bf16, twice per micro-batch; the head's are kept between forward and backward.
    assert gathered.bytes == 2 * n_micro_batches * (s - 1) / s * (2 * (n - head) + head)
    assert gathered.overlaps
    assert only(setting, "fsdp", "reduce_scatter", "gradients").bytes == 4 * n_micro_batches * n * (s - 1) / s
    assert only(setting, "dp_replicate", "all_reduce", "gradients").bytes == 8 * n_micro_batches * n / s * (r - 1) / r


def test_a_pipeline_gathers_and_reduces_once_per_step():
    stages = StagePlan((Stage((0, 1, 2), True, False), Stage((3, 4, 5), False, True)), (0, 1))
    dims = ParallelDims(pp=2, dp_shard=8)
    setting = Setting(MODEL, dims, Tokens(4096, 16), stages=stages, reshards=False)
    by_rank = [[each for each in transfers(setting) if each.pipeline_rank == rank] for rank in range(2)]
    stage = MODEL.n_parameters / 2
    for own in by_rank:
        found = {(each.collective, each.purpose): each for each in own}
        assert found["all_gather", "weights"].bytes == 2 * stage * 7 / 8
        assert found["reduce_scatter", "gradients"].bytes == 4 * stage * 7 / 8
        assert not found["reduce_scatter", "gradients"].overlaps, "no computation is left"
    [forward] = [each for each in by_rank[0] if each.collective == "send"]
    [backward] = [each for each in by_rank[1] if each.collective == "send"]
    assert forward.bytes == backward.bytes == 16 * 4096 * HIDDEN * 2


@pytest.mark.parametrize(("checkpointing", "again"), [("none", 0), ("selective", 0), ("full", 1)])
def test_tensor_ranks_gather_and_scatter_every_region(checkpointing, again):
    tokens, t, c, m = 4096, 4, 2, 5
    setting = Setting(MODEL, ParallelDims(cp=c, tp=t), Tokens(tokens, m), checkpointing=checkpointing)
    one = tokens / c * HIDDEN * 2 * (t - 1) / t
    # Forward and backward of two regions per layer, of the embedding's scatter, and of the head's gather.
    assert only(setting, "tp", "all_gather", "sequence shards").bytes == m * one * (4 * LAYERS + 2)
    assert only(setting, "tp", "reduce_scatter", "sequence shards").bytes == m * one * (4 * LAYERS + 2)
    repeated = [each for each in transfers(setting) if each.purpose == "sequence shards, again"]
    # Backward needs nothing behind the last region, so its scatter is not repeated.
    assert sum(each.bytes for each in repeated) == again * m * one * 3 * LAYERS
    ulysses = only(setting, "cp", "all_to_all", "heads")
    per_token = (2 * 16 + 2 * 8) * 64 / t
    assert ulysses.bytes == m * LAYERS * (2 + again) * per_token * tokens / c * 2 * (c - 1) / c
    assert not ulysses.overlaps


@pytest.mark.parametrize(("checkpointing", "again"), [("selective", 0), ("full", 1)])
def test_context_ranks_gather_keys_and_values_once_per_pass(checkpointing, again):
    tokens, t, c, m = 4096, 2, 4, 3
    of = {"tokens": Tokens(tokens, m), "checkpointing": checkpointing}
    setting = Setting(MODEL, ParallelDims(cp=c, tp=t), cp_style="gather", **of)
    one = 2 * 8 * 64 / t * tokens * 2 * (c - 1) / c
    assert only(setting, "cp", "all_gather", "keys and values").bytes == m * LAYERS * (1 + again) * one
    assert only(setting, "cp", "reduce_scatter", "keys and values").bytes == m * LAYERS * one
    assert not [each for each in transfers(setting) if each.purpose == "heads"]


def test_groups_of_context_ranks_exchange_heads_and_gather_those_keys():
    tokens, m = 4092, 2
    # 16 query heads over 12 ranks: groups of 4 exchange heads, and 3 groups gather. 8 key heads: 2 on each rank.
    setting = Setting(MODEL, ParallelDims(cp=12), Tokens(tokens, m), checkpointing="none")
    heads = only(setting, "cp_heads", "all_to_all", "heads")
    assert (heads.size, heads.calls) == (4, m * LAYERS * 2 * 3)
    assert heads.bytes == m * LAYERS * 2 * (2 * 16 + 2 * 8) * 64 * tokens / 12 * 2 * 3 / 4
    keys = only(setting, "cp_keys", "all_gather", "keys and values")
    assert (keys.size, keys.calls) == (3, m * LAYERS)
    assert keys.bytes == m * LAYERS * 2 * 2 * 64 * tokens * 2 * 2 / 3


@pytest.mark.parametrize(("n_experts", "top_k", "ep"), [(6, 2, 1), (6, 2, 3), (8, 3, 4), (8, 2, 8), (4, 4, 2)])
def test_the_share_of_tokens_at_a_place_is_that_of_all_sets_of_experts(n_experts, top_k, ep):
    chosen = list(combinations(range(n_experts), top_k))
    first_place = set(range(n_experts // ep))
    share = sum(bool(first_place & set(experts)) for experts in chosen) / len(chosen)
    assert share_of_place(ExpertsAnatomy(n_experts, top_k, 1), ep) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize(("query", "keys", "tp"), [(8, 1, 4), (8, 2, 4), (12, 6, 4), (12, 3, 6), (16, 2, 16)])
def test_key_heads_that_are_sent_are_those_that_queries_of_other_ranks_read(query, keys, tp):
    size = 6
    outputs = keys * size
    # Every feature by the rank that computes it, and every rank by the features that its queries read.
    owner = {feature: feature // -(-outputs // tp) for feature in range(outputs)}
    read = [set() for _ in range(tp)]
    for head in range(query):
        key = head // (query // keys)
        read[head // (query // tp)] |= set(range(key * size, (key + 1) * size))
    out = [sum(owner[f] == rank for r in range(tp) if r != rank for f in read[r]) for rank in range(tp)]
    back = [sum(owner[f] != rank for f in read[rank]) for rank in range(tp)]
    found = key_heads_sent(AttentionAnatomy(HeadCounts(query, keys), size, size), tp)
    assert found == tuple((2 * forward, 2 * backward) for forward, backward in zip(out, back, strict=True))


def test_context_ranks_replicate_key_heads_that_they_do_not_divide():
    attention = AttentionAnatomy(HeadCounts(16, 2), 8, 8)
    assert heads_exchanged(attention, 1, 2) == (16 * 8, 2 * 2 * 8, 16 * 8)
    assert heads_exchanged(attention, 1, 4) == (16 * 8, 2 * 4 * 8, 16 * 8)
    assert heads_exchanged(attention, 4, 2) == (4 * 8, 2 * 2 * 8, 4 * 8), "one key head on each tensor rank, twice"


@pytest.mark.parametrize(("tp", "cp"), [(1, 2), (1, 4), (4, 2)])
def test_queries_that_are_not_sent_first_share_an_exchange_with_keys_and_values(tp, cp):
    sent = AttentionAnatomy(HeadCounts(16, 2), 8, 8)
    queries, keys, results = heads_exchanged(sent, tp, cp)
    assert heads_exchanged(replace(sent, sends_queries=False), tp, cp) == (queries + keys, results)


def actions(text: str) -> tuple[Action, ...]:
    return tuple(map(Action.parse, text.split()))


def test_freed_weights_are_gathered_once_for_every_pass():
    middle = StageActions(actions("1F0 1F1 1B0 1F2 1B1 1B2"), is_first=False, is_last=False)
    assert count_gathers(middle) == Gathers(unit=6, recomputed=6, experts=6)


def test_experts_and_recomputed_blocks_are_gathered_for_both_halves_of_a_split_backward_pass():
    texts = actions("1F0 1I0 1W0 1F1 1B1")
    assert count_gathers(StageActions(texts, is_first=False, is_last=False)) == Gathers(4, 5, 5)
    for ends in ({"is_first": True, "is_last": False}, {"is_first": False, "is_last": True}):
        assert count_gathers(StageActions(texts, **ends)) == Gathers(4, 4, 4), "the ends do not split"


def test_the_last_stage_reduces_less_often_where_gradients_of_two_micro_batches_are_there():
    text = "3F0 3I0 3F1 3I1 3W0 3W1"
    assert count_reductions(StageActions(actions(text), is_first=False, is_last=True)) == 1
    assert count_reductions(StageActions(actions(text), is_first=False, is_last=False)) == 2


def test_a_publication_gathers_all_but_the_first_ranks_part():
    published = publication_bytes(Setting(MODEL, ParallelDims(dp_shard=4, tp=2), Tokens(1)), groups=2)
    assert published.whole == 2 * MODEL.n_parameters
    assert published.gathered == published.whole * 7 // 8
    assert published.sent == 2 * published.whole
