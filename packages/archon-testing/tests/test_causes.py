"""From what the ranks hold of a wrong tensor to the mistake: numbers written by hand, four ranks of dp_shard x tp."""

import math
from dataclasses import replace

import pytest
import torch

from archon_core.models.box import Box
from archon_testing.causes import (
    cause_of_arrangement,
    cause_of_copies,
    cause_of_decay,
    cause_of_factor,
    cause_of_norm,
    cause_of_number,
    cause_of_tensor,
)
from archon_testing.diagnosis import Cause, Diagnosis, Finding, shared_place
from archon_testing.held_shards import HeldShard
from archon_testing.module_outputs import own_and_expected

RANKS = [{"dp_shard": d, "tp": t, "cp": 1} for d in range(2) for t in range(2)]
RIGHT = torch.tensor([1.0, -2.0, 3.0, 5.0], dtype=torch.float64)


def rows_of_data_ranks(values_of_rank):
    """Pieces of a vector that data ranks share and tensor ranks have copies of."""
    return [
        HeldShard(values_of_rank(rank, RIGHT[2 * place["dp_shard"] :][:2]), Box((2 * place["dp_shard"],), (2,)), (4,))
        for rank, place in enumerate(RANKS)
    ]


def test_parts_that_sum_to_the_right_value_miss_a_reduction():
    shards = rows_of_data_ranks(lambda rank, right: right * (0.25 if RANKS[rank]["tp"] else 0.75))
    assert cause_of_tensor(shards, RIGHT, RANKS) == Cause("missing reduction", ("tp",))


def test_values_whose_mean_is_right_were_never_averaged():
    shards = rows_of_data_ranks(lambda rank, right: right + (0.5 if RANKS[rank]["tp"] else -0.5))
    assert cause_of_tensor(shards, RIGHT, RANKS) == Cause("averaged", ("tp",))


def test_a_reduction_may_be_missing_over_two_axes():
    shares = [0.1, 0.2, 0.3, 0.4]
    shards = [HeldShard.whole(RIGHT * share) for share in shares]
    assert cause_of_tensor(shards, RIGHT, RANKS) == Cause("missing reduction", ("dp_shard", "tp"))


BOTH = (("dp_shard",), ("tp",))


@pytest.mark.parametrize(
    ("factor", "axes", "candidates"),
    [
        (2.0, (), BOTH),
        # Every copy has half of it, so they sum to the right value: but they were reduced, or they would differ.
        (0.5, (), BOTH),
        (4.0, ("dp_shard", "tp"), ()),
        (0.25, ("dp_shard", "tp"), ()),
        (3.0, (), ()),
    ],
)
def test_a_clean_multiple_is_named_with_the_axes_of_that_size(factor, axes, candidates):
    shards = rows_of_data_ranks(lambda rank, right: factor * right)
    cause = cause_of_tensor(shards, RIGHT, RANKS)
    assert (cause.kind, cause.axes, cause.candidates) == ("factor", axes, candidates)
    assert cause.factor == pytest.approx(factor)


def test_all_axes_that_could_have_been_reduced_twice_are_told():
    assert str(Cause("factor", (), 2.0, BOTH)).endswith(
        "a doubled reduction, or copies that are summed over dp_shard or tp"
    )
    assert str(Cause("factor", ("cp", "tp"), 4.0)).endswith("over cp x tp")


def test_a_ratio_is_reported_only_if_it_is_informative():
    assert str(Cause(factor=0.0)) == "it is zero throughout"
    assert str(Cause(factor=1.00001)) == ""
    assert str(Cause(factor=0.755)) == "about 0.755 times the right value"


def test_what_is_no_multiple_is_not_called_one():
    shards = rows_of_data_ranks(lambda rank, right: right + torch.tensor([1.0, 0.0]))
    cause = cause_of_tensor(shards, RIGHT, RANKS)
    assert (cause.kind, cause.factor) == ("unknown", pytest.approx(1.1, abs=0.2))
    assert cause_of_factor([(torch.full((4,), math.nan), RIGHT)], RANKS) == Cause()
    assert cause_of_factor([(RIGHT, torch.zeros(4))], RANKS) == Cause()


def test_only_whole_ratios_of_single_numbers_are_clean():
    assert cause_of_number(6.0, 1.5, RANKS) == Cause("factor", ("dp_shard", "tp"), 4.0)
    assert cause_of_number(3.0, 1.5, RANKS) == Cause("factor", (), 2.0, BOTH)
    assert cause_of_number(1.5, 1.0, RANKS) == Cause("unknown", factor=1.5)
    assert cause_of_number(math.nan, 1.0, RANKS) == Cause()


def gradients(sharded_over):
    """One vector, cut over some of the axes."""
    shards = []
    for place in RANKS:
        start, extent = 0, 4
        for axis in sharded_over:
            extent //= 2
            start += place[axis] * extent
        shards.append({"weight": HeldShard(RIGHT[start : start + extent], Box((start,), (extent,)), (4,))})
    return shards


def test_a_norm_that_forgets_an_axis_is_recognised():
    held = gradients(["dp_shard", "tp"])
    right = float(RIGHT.norm())
    forgetful = [float(RIGHT[[t, 2 + t]].norm()) for t in (0, 1)] * 2
    cause = cause_of_norm(forgetful, right, held, RANKS)
    assert (cause.kind, cause.axes) == ("forgotten axis", ("tp",))


def test_a_norm_that_counts_copies_is_recognised():
    held = gradients(["dp_shard"])
    right = float(RIGHT.norm())
    cause = cause_of_norm([right * math.sqrt(2)] * 4, right, held, RANKS)
    assert (cause.kind, cause.axes) == ("copies counted", ("tp",))


def test_any_other_norm_is_reported_as_a_ratio():
    held, right = gradients(["dp_shard"]), float(RIGHT.norm())
    assert cause_of_norm([3 * right] * 4, right, held, RANKS).kind == "factor"
    assert cause_of_norm([1.1 * right] * 4, right, held, RANKS) == Cause(factor=pytest.approx(1.1))


STAGES = [{"pp": p, "dp_shard": d} for p in range(2) for d in range(2)]


def halves(values):
    """Of a vector that two data ranks share."""
    return [HeldShard(values[2 * d : 2 * d + 2], Box((2 * d,), (2,)), (4,)) for d in range(2)]


def test_a_tensor_of_one_stage_is_judged_by_the_ranks_that_have_it():
    shards = [None, None, HeldShard.whole(RIGHT * 0.25), HeldShard.whole(RIGHT * 0.75)]
    assert cause_of_tensor(shards, RIGHT, STAGES) == Cause("missing reduction", ("dp_shard",))
    assert cause_of_tensor([None, None, *halves(2 * RIGHT)], RIGHT, STAGES).axes == ("dp_shard",)


def test_copies_of_a_tied_weight_that_are_not_summed_are_recognised():
    parts = [halves(0.25 * RIGHT), halves(0.75 * RIGHT)]
    cause = cause_of_copies(parts, RIGHT)
    assert cause == Cause("copies not summed", ("pp",))
    assert "two copies of this tied weight" in str(cause)
    assert cause_of_copies([halves(RIGHT), halves(RIGHT)], RIGHT) is None
    assert cause_of_copies([halves(RIGHT), halves(0.0 * RIGHT)], RIGHT) is None
    assert cause_of_copies([halves(0.5 * RIGHT), halves(0.75 * RIGHT)], RIGHT) is None


def test_a_norm_of_stages_is_recognised_that_forgets_some_or_counts_tied_copies():
    first, last = RIGHT, 2 * RIGHT
    held = [{"first": own} for own in halves(first)] + [{"last": own} for own in halves(last)]
    right = math.hypot(float(first.norm()), float(last.norm()))
    own_stage = [float(first.norm())] * 2 + [float(last.norm())] * 2
    assert cause_of_norm(own_stage, right, held, STAGES).axes == ("pp",)
    tied = [dict(of_rank) for of_rank in held]
    for rank, own in zip((2, 3), halves(first), strict=True):
        tied[rank]["copy"] = own
    counted = math.hypot(right, float(first.norm()))
    cause = cause_of_norm([counted] * 4, right, tied, STAGES, {"copy"})
    assert (cause.kind, cause.axes) == ("copies counted", ("pp",))
    assert str(cause) == "it counts tied weights once for each stage that has a copy"
    forgetful = cause_of_norm(own_stage, right, tied, STAGES, {"copy"})
    assert (forgetful.kind, forgetful.axes) == ("forgotten axis", ("pp",))


def test_wrong_ranks_are_told_by_what_they_share():
    assert shared_place((1, 3), RANKS) == {"tp": 1}
    assert shared_place((2,), RANKS) == {"dp_shard": 1, "tp": 0}
    assert shared_place((0, 3), RANKS) == {}


def test_a_diagnosis_reads_as_sentences():
    found = Diagnosis(None, n_modules=9, module=Finding("rotary", 1.0, Cause(factor=0.755), (1,), {"cp": 1}))
    assert found.lines == [
        "first module in forward order whose output differs: rotary: off by 1.0e+00; on rank 1 (cp 1); about 0.755 "
        "times the right value"
    ]


TOKENS = 10
WHOLE = torch.arange(TOKENS * 6, dtype=torch.float64).view(TOKENS, 6)


@pytest.mark.parametrize("c", [1, 2, 3])
@pytest.mark.parametrize("t", [1, 2])
def test_a_ranks_share_of_an_output_is_found_by_its_shape(c, t):
    padded = -(-TOKENS // (c * t)) * c * t
    rows = torch.cat([WHOLE, torch.full((padded - TOKENS, 6), math.nan)])
    for i in range(c):
        for j in range(t):
            place, sizes = {"cp": i, "tp": j}, {"cp": c, "tp": t}
            shares = [
                rows.chunk(c * t)[i * t + j],  # between tensor regions
                rows.chunk(c)[i].chunk(t, 1)[j],  # inside of one
                rows.chunk(c)[i],
            ]
            for share in shares:
                own, expected = own_and_expected(share, WHOLE, TOKENS, place, sizes)
                assert torch.equal(own, expected)
            assert own_and_expected(rows[:1, :5], WHOLE, TOKENS, place, sizes) is None


def test_a_rank_that_holds_several_parts_of_a_pack_is_compared_with_them():
    rows = torch.cat([WHOLE, torch.full((6, 6), math.nan)])
    places = [2, 3, 8, 9, 12, 13, 14, 15]
    for t, own_places in ((1, places), (2, places[4:])):
        place, sizes = {"cp": 1, "tp": t - 1}, {"cp": 2, "tp": t}
        own, expected = own_and_expected(rows[own_places], WHOLE, TOKENS, place, sizes, places=places)
        assert torch.equal(own, expected)
        assert expected[:, 0].tolist() == [6 * token for token in own_places if token < TOKENS]


def test_a_short_micro_batch_of_a_pipeline_is_padded_to_the_longest():
    rows = torch.cat([WHOLE, torch.full((6, 6), math.nan)])
    for i in range(2):
        place, sizes = {"cp": i, "tp": 0}, {"cp": 2, "tp": 1}
        own, expected = own_and_expected(rows.chunk(2)[i], WHOLE, TOKENS, place, sizes, longest=15)
        assert torch.equal(own, expected)
        assert len(expected) == (8, 2)[i]
    all_padding, none = own_and_expected(rows.chunk(2)[1], WHOLE[:3], 3, {"cp": 1, "tp": 0}, sizes, longest=16)
    assert len(all_padding) == len(none) == 0
    # As many rows as tokens: whole, or a rank's part? It cannot be told.
    assert own_and_expected(WHOLE[:8], WHOLE[:8], 8, {"cp": 1, "tp": 0}, sizes, longest=16) is None


def test_the_right_elements_in_other_places_are_recognised():
    matrix = torch.arange(6.0).reshape(2, 3)
    assert cause_of_arrangement(matrix.T.reshape(2, 3), matrix) == Cause("transposed")
    assert cause_of_arrangement(matrix.flip(0), matrix) == Cause("rows exchanged")
    assert cause_of_arrangement(matrix.flip(0)[None], matrix[None]) == Cause("rows exchanged")
    assert cause_of_arrangement(matrix * (1 + 1e-8), matrix) is None
    assert cause_of_arrangement(matrix[[0, 0]], matrix) is None
    assert cause_of_arrangement(matrix * torch.nan, matrix) is None


def test_a_weight_that_differs_by_what_decay_takes_away_is_recognised():
    start, right = torch.tensor([2.0, -3.0, 1.0]), torch.tensor([1.9, -2.8, 1.1])
    decay = 1e-3 * start
    assert cause_of_decay(right + decay, right, decay, decayed=True).kind == "decay missing"
    assert cause_of_decay(right - decay, right, decay, decayed=False).kind == "decay unwanted"
    twice = cause_of_decay(right - decay, right, decay, decayed=True)
    assert (twice.kind, round(twice.factor, 4), str(twice)) == ("decay wrong", 2.0, "weight decay is applied 2 times")
    assert cause_of_decay(right + 1e-3, right, decay, decayed=True) is None
    assert cause_of_decay(right, right, decay, decayed=True) is None


def test_a_mistake_of_one_process_is_not_laid_on_the_layout():
    wrong = Diagnosis(None, n_modules=4, n_parameters=9, n_wrong=9, parameter=Finding("norm.weight", 0.5))
    assert wrong.lines[0].endswith(": the mistake is in backward or in a reduction")
    alone = replace(wrong, alone=True).lines
    assert alone[0].endswith("; one process differs likewise, so the layout is not to blame")
    assert not any("the mistake is in" in line for line in alone)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"recomputed": True, "parameter": Finding("a", 1.0)}, ": the mistake is in what backward recomputes"),
        ({"norm": Finding("a", 1.0)}, ": the mistake is in the gradient norm"),
        ({"weight": Finding("a", 1.0)}, ": the mistake is in the step"),
        ({"export": Finding("a", 1.0)}, ": the mistake is in the export"),
        ({}, "that can be compared"),
    ],
)
def test_after_a_forward_pass_that_agrees_the_place_is_the_first_thing_that_does_not(fields, place):
    assert Diagnosis(None, n_modules=4, **fields).lines[0].endswith(place)


def test_a_finding_names_experts_and_far_positions():
    found = Finding("moe", 0.5, experts=(2, 5), n_experts=8, first_position=65)
    assert str(found) == (
        "moe: off by 5.0e-01; only experts 2, 5 of 8; only tokens from position 65 of their sequence on"
    )
