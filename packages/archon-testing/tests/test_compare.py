"""The oracle's rule on numbers written by hand: what counts as equal, and what each quantity reports."""

import math
from dataclasses import replace

import pytest
import torch

from archon_core.models.box import Box
from archon_testing.cases import Case
from archon_testing.compare import compare, missing_parameters, relative_error
from archon_testing.held_shards import HeldShard
from archon_testing.record import Record, StepRecord
from archon_testing.verdicts import QUANTITIES, Deviation, RankReport, Verdict, joint_verdict, worst_of


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def whole(*numbers):
    return HeldShard.whole(tensor(*numbers))


def part(start, extent, *numbers):
    """What a rank holds of a vector of ``extent`` elements, from ``start`` on."""
    return HeldShard(tensor(*numbers), Box((start,), (len(numbers),)), (extent,))


STEP = StepRecord(
    loss={"loss": 2.0, "entropy": 4.0},
    gradient_norm=5.0,
    gradients={"big.weight": whole(-100.0, 50.0), "zero.bias": whole(0.0, 0.0)},
    weights={"big.weight": whole(1.0, -2.0), "zero.bias": whole(0.1, 0.2)},
)
REFERENCE = Record((STEP, STEP, STEP), {"logprobs before training": tensor(-1.0, -4.0)})


def changed(**fields):
    """The reference with a changed second step."""
    return replace(REFERENCE, steps=(STEP, replace(STEP, **fields), STEP))


def test_a_record_equals_itself():
    comparison = compare(REFERENCE, REFERENCE, "float64")
    assert comparison.passed
    assert {comparison.worst[quantity].error for quantity in QUANTITIES} == {0.0}


def test_errors_are_relative_to_the_tensors_largest_magnitude():
    assert relative_error(whole(-8.0, 1.5), whole(-8.0, 1.0), largest=1000.0) == 0.5 / 8
    assert relative_error(whole(-4.0, 1.0), whole(-8.0, 1.0), largest=1.0) == 0.5


def test_a_piece_is_held_against_its_place_and_the_whole_tensors_magnitude():
    expected = whole(-8.0, 1.0, 2.0)
    assert relative_error(part(1, 3, 1.0, 2.0), expected, largest=1.0) == 0.0
    assert relative_error(part(1, 3, 1.5, 2.0), expected, largest=1.0) == 0.5 / 8
    assert relative_error(part(3, 3), expected, largest=1.0) == 0.0


def test_of_stacked_matrices_each_is_relative_to_its_own_magnitude():
    whole = torch.ones(3, 2, 2, dtype=torch.float64)
    whole[1] *= 1e-3
    off = whole.clone()
    off[1, 0, 0] += 1e-6
    assert relative_error(HeldShard.whole(off), HeldShard.whole(whole), 1.0) == pytest.approx(1e-3)
    part = HeldShard(off[1:2, :, :1].clone(), Box((1, 0, 0), (1, 2, 1)), (3, 2, 2))
    assert relative_error(part, HeldShard.whole(whole), 1.0) == pytest.approx(1e-3)
    idle = torch.zeros(2, 2, 2, dtype=torch.float64)
    assert relative_error(HeldShard.whole(idle), HeldShard.whole(idle), 1.0) == 0.0
    assert relative_error(HeldShard.whole(idle + 1e-9), HeldShard.whole(idle), 1.0) == pytest.approx(1e-3)


def test_a_millionth_of_the_largest_tensor_is_the_least_scale():
    assert relative_error(whole(1e-9), whole(0.0), largest=100.0) == pytest.approx(1e-9 / 1e-4)
    assert relative_error(whole(0.0), whole(0.0), largest=0.0) == 0.0
    assert relative_error(whole(1e-30), whole(0.0), largest=0.0) == math.inf


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_is_never_equal(wrong):
    assert relative_error(whole(wrong), whole(1.0), largest=1.0) == math.inf
    assert relative_error(whole(wrong), whole(wrong), largest=1.0) == math.inf
    assert "loss" in compare(changed(loss={"loss": wrong, "entropy": 4.0}), REFERENCE, "float32").failed


def test_another_shape_is_never_equal():
    assert relative_error(whole(1.0, 1.0), whole(1.0), largest=1.0) == math.inf
    assert relative_error(HeldShard(tensor(1.0), Box((0,), (2,)), (2,)), whole(1.0, 1.0), largest=1.0) == math.inf


@pytest.mark.parametrize(
    ("fields", "quantity", "deviation"),
    [
        ({"loss": {"loss": 2.002, "entropy": 4.0}}, "loss", Deviation(1e-3, "loss", 2)),
        ({"loss": {"loss": 2.0, "entropy": 4.004}}, "loss", Deviation(1e-3, "entropy", 2)),
        ({"loss": {"loss": 2.0}}, "loss", Deviation(math.inf, "entropy", 2)),
        ({"gradient_norm": 5.005}, "gradient norm", Deviation(1e-3, "global norm", 2)),
        (
            {"gradients": {**STEP.gradients, "zero.bias": whole(0.0, 1e-7)}},
            "gradients",
            Deviation(1e-3, "zero.bias", 2),
        ),
        ({"weights": {**STEP.weights, "more.weight": whole(1.0)}}, "weights", Deviation(math.inf, "more.weight", 2)),
    ],
)
def test_a_changed_value_is_reported_with_its_quantity_name_and_step(fields, quantity, deviation):
    comparison = compare(changed(**fields), REFERENCE, "float64")
    assert comparison.failed == (quantity,)
    found = comparison.worst[quantity]
    assert (found.name, found.step) == (deviation.name, deviation.step)
    assert found.error == pytest.approx(deviation.error)


def test_a_changed_output_is_reported_with_its_name():
    comparison = compare(
        replace(REFERENCE, outputs={"logprobs before training": tensor(-1.0, -4.4)}), REFERENCE, "float64"
    )
    assert comparison.failed == ("outputs",)
    assert str(comparison.worst["outputs"]) == "1.0e-01 logprobs before training"


def test_a_ranks_outputs_are_held_against_those_of_its_own_tokens():
    mine = Record(outputs={"logprobs before training": tensor(-4.0)}, tokens=torch.tensor([1]))
    assert compare(mine, REFERENCE, "float64").passed
    assert compare(replace(mine, tokens=torch.tensor([0])), REFERENCE, "float64").failed == ("outputs",)
    assert compare(replace(mine, tokens=torch.tensor([0, 1])), REFERENCE, "float64").worst["outputs"].error == math.inf


def test_initial_weights_are_held_against_those_of_one_process():
    reference = replace(REFERENCE, initial={"head.weight": whole(0.5)})
    assert compare(Record(initial={"head.weight": whole(0.5)}), reference, "float64").passed
    drawn_anew = compare(Record(initial={"head.weight": whole(0.7)}), reference, "float64")
    assert str(drawn_anew.worst["weights"]) == "4.0e-01 head.weight"


def test_exported_tensors_are_judged_in_every_type():
    assert compare(replace(REFERENCE, exported={"model.norm.weight": 0.0}), REFERENCE, "float32").passed
    wrong = compare(replace(REFERENCE, exported={"model.norm.weight": 0.5}), REFERENCE, "float32")
    assert wrong.failed == ("export",)
    assert str(wrong.worst["export"]) == "5.0e-01 model.norm.weight"


MOMENTS = {
    "big.weight exp_avg": whole(-10.0, 5.0),
    "zero.bias exp_avg": whole(0.1, 0.0),
    "big.weight exp_avg_sq": whole(1e-8, 1e-9),
    "zero.bias exp_avg_sq": whole(0.0, 1e-12),
}


def resumed(*, state=MOMENTS, **fields):
    """A record of the second step, as a new engine takes it."""
    step = replace(STEP, state=state)
    return Record((step,), **{"first_step": 2, "loaded": STEP.weights, "loaded_state": MOMENTS, **fields})


WITH_STATE = replace(REFERENCE, steps=(replace(STEP, state=MOMENTS),) * 3)


def test_a_resumed_step_is_held_against_the_step_of_its_number():
    assert compare(resumed(), WITH_STATE, "float64").passed
    other = replace(WITH_STATE, steps=(WITH_STATE.steps[0], replace(WITH_STATE.steps[1], gradient_norm=6.0), STEP))
    found = compare(resumed(), other, "float64")
    assert (found.failed, found.worst["gradient norm"].step) == (("gradient norm",), 2)


def test_first_and_second_moments_have_floors_of_their_own():
    wrong = {**MOMENTS, "big.weight exp_avg_sq": whole(1e-8, 2e-9)}
    found = compare(resumed(state=wrong), WITH_STATE, "float64")
    assert found.failed == ("optimizer state",)
    assert str(found.worst["optimizer state"]) == "1.0e-01 big.weight exp_avg_sq (step 2)"
    assert compare(resumed(state=wrong), WITH_STATE, "float32").passed


def test_what_is_not_as_saved_after_loading_is_a_problem_in_every_type():
    stale = {**STEP.weights, "zero.bias": whole(0.1, 0.3)}
    for dtype in ("float64", "float32"):
        found = compare(resumed(loaded=stale), WITH_STATE, dtype)
        assert found.problems == ("after loading, zero.bias is not what was saved",)
    zeros = {name: whole(0.0, 0.0) for name in MOMENTS}
    [problem] = compare(resumed(loaded_state=zeros), WITH_STATE, "float32").problems
    assert problem == (
        "after loading, the optimizer's big.weight exp_avg, zero.bias exp_avg, big.weight exp_avg_sq and 1 more are "
        "not what was saved"
    )


def test_the_step_in_bfloat16_has_wide_limits_and_unclipped_weights_that_are_not_compared():
    step = replace(STEP, gradient_norm=5.05, weights={name: whole(7.0, 7.0) for name in STEP.weights})
    assert compare(Record((step,)), REFERENCE, "bfloat16").passed
    assert compare(Record((replace(step, gradient_norm=5.2),)), REFERENCE, "bfloat16").failed == ("gradient norm",)
    off = replace(step, gradients={**STEP.gradients, "big.weight": whole(-80.0, 50.0)})
    assert compare(Record((off,)), REFERENCE, "bfloat16").passed
    farther = replace(step, gradients={**STEP.gradients, "big.weight": whole(-70.0, 50.0)})
    assert compare(Record((farther,)), REFERENCE, "bfloat16").failed == ("gradients",)
    of_experts = Record((replace(step, gradient_norm=6.0),), comparable=False, problems=("rounded sums",))
    assert compare(of_experts, REFERENCE, "bfloat16").problems == ("rounded sums",)
    assert compare(of_experts, REFERENCE, "bfloat16").failed == ()


def test_a_record_of_nothing_has_not_passed():
    assert compare(Record(), REFERENCE, "float64").problems == ("nothing was recorded",)


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-9), ("float32", 1e-5)])
def test_the_limits_are_those_of_the_type(dtype, limit):
    assert compare(changed(gradient_norm=5.0 * (1 + 0.5 * limit)), REFERENCE, dtype).passed
    assert compare(changed(gradient_norm=5.0 * (1 + 2 * limit)), REFERENCE, dtype).failed == ("gradient norm",)


def test_weights_are_judged_in_float64_only():
    moved = changed(weights={**STEP.weights, "big.weight": whole(1.0, -2.1)})
    assert compare(moved, REFERENCE, "float64").failed == ("weights",)
    in_float32 = compare(moved, REFERENCE, "float32")
    assert in_float32.passed
    assert in_float32.worst["weights"].error == pytest.approx(0.05)


def test_a_problem_fails_whatever_the_numbers_are():
    assert not compare(replace(REFERENCE, problems=("ranks disagree",)), REFERENCE, "float64").passed
    missing = compare(replace(REFERENCE, steps=(STEP,)), REFERENCE, "float64")
    assert missing.problems == ("1 steps were recorded, the reference has 3",)


def test_the_worst_of_comparisons_keeps_every_problem_once():
    ranks = [
        compare(replace(changed(gradient_norm=norm), problems=("both",)), REFERENCE, "float64") for norm in (5.5, 6.0)
    ]
    worst = worst_of(ranks)
    assert worst.worst["gradient norm"] == Deviation(pytest.approx(0.2), "global norm", 2)
    assert worst.problems == ("both",)


def test_a_refused_case_has_not_passed():
    assert not Verdict(Case({}), None, "it does not fit").passed


def reports(*numbers, outputs=(1, 1), data_ranks=(0, 0)):
    """What two ranks say that tell the same errors and different numbers."""
    verdict = Verdict(Case({}), compare(REFERENCE, REFERENCE, "float64"))
    pairs = zip(numbers, data_ranks, outputs, strict=True)
    return [RankReport(verdict, {"loss (step 1)": number}, rank, checksum) for number, rank, checksum in pairs]


def test_ranks_must_tell_the_same_numbers_to_the_last_bit():
    assert joint_verdict(reports(0.1, 0.1)).passed
    found = joint_verdict(reports(0.3, 0.1 + 0.2))
    assert not found.passed
    assert found.comparison.problems[0].startswith("ranks report different values of loss (step 1): 0.3, 0.300")


def test_ranks_of_one_data_rank_must_compute_the_same_outputs():
    assert joint_verdict(reports(1.0, 1.0, outputs=(1, 2), data_ranks=(0, 1))).passed
    found = joint_verdict(reports(1.0, 1.0, outputs=(1, 2)))
    assert found.comparison.problems == ("ranks of data rank 0 compute different outputs",)


def test_a_rank_that_has_left_says_nothing():
    here, left = reports(1.0, 2.0)
    assert joint_verdict([here, replace(left, takes_part=False)]).passed


FIRST = {"big.weight": STEP.gradients["big.weight"]}
LAST = {"zero.bias": STEP.gradients["zero.bias"]}


def on_a_stage(gradients, weights, copies=None):
    """What a rank records that has a part of the parameters."""
    step = replace(STEP, gradients=gradients, weights=weights)
    return Record((step,) * 3, pipelined=True, copies=copies or {})


def test_a_stage_has_some_parameters_and_together_they_have_all():
    first = on_a_stage(FIRST, {"big.weight": whole(1.0, -2.0)})
    last = on_a_stage(LAST, {"zero.bias": whole(0.1, 0.2)})
    assert compare(first, REFERENCE, "float64").passed
    assert missing_parameters(first, REFERENCE) == {"zero.bias"}
    assert missing_parameters(last, REFERENCE) == {"big.weight"}
    passed = Verdict(Case({}), compare(REFERENCE, REFERENCE, "float64"))

    def said(*records, pipelines):
        return joint_verdict(
            [
                RankReport(passed, missing=missing_parameters(record, REFERENCE), pipeline=pipeline)
                for record, pipeline in zip(records, pipelines, strict=True)
            ]
        )

    assert said(first, last, pipelines=(0, 0)).passed
    # Two pipelines side by side, one of which has the first stage twice.
    found = said(first, first, last, first, pipelines=(0, 1, 0, 1))
    assert found.comparison.problems == ("no rank of 1, 3, which together hold the model, has zero.bias",)


def test_without_a_pipeline_a_missing_parameter_is_a_wrong_one():
    found = compare(replace(on_a_stage(FIRST, STEP.weights), pipelined=False), REFERENCE, "float64")
    assert found.worst["gradients"].error == math.inf


def test_a_wrong_parameter_of_a_stage_is_wrong_and_so_is_one_that_the_model_lacks():
    wrong = on_a_stage({"big.weight": whole(-100.0, 51.0)}, {"big.weight": whole(1.0, -2.0)})
    assert compare(wrong, REFERENCE, "float64").worst["gradients"].error == 0.01
    strange = on_a_stage({**FIRST, "more.weight": whole(1.0)}, {"big.weight": whole(1.0, -2.0)})
    assert compare(strange, REFERENCE, "float64").worst["gradients"].error == math.inf


def test_a_copy_of_a_tied_weight_is_held_against_its_original_and_must_be_there():
    copies = {"head.weight": "big.weight"}
    copy = on_a_stage({"head.weight": whole(-100.0, 50.0)}, {"head.weight": whole(1.0, -2.0)}, copies)
    assert compare(copy, REFERENCE, "float64").passed
    assert missing_parameters(copy, REFERENCE) == {"big.weight", "zero.bias"}
    assert missing_parameters(on_a_stage(FIRST, FIRST, copies), REFERENCE) == {"head.weight", "zero.bias"}
    apart = on_a_stage({"head.weight": whole(-60.0, 20.0)}, {"head.weight": whole(1.0, -2.0)}, copies)
    assert str(compare(apart, REFERENCE, "float64").worst["gradients"]) == "4.0e-01 head.weight (step 1)"
