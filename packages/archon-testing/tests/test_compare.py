"""The oracle's rule on numbers written by hand: what counts as equal, and what each quantity is told for."""

import math
from dataclasses import replace

import pytest
import torch

from archon_testing.cases import Case
from archon_testing.compare import compare, relative_error
from archon_testing.record import Record, StepRecord
from archon_testing.verdicts import QUANTITIES, Deviation, Verdict, worst_of


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


STEP = StepRecord(
    loss={"loss": 2.0, "entropy": 4.0},
    gradient_norm=5.0,
    gradients={"big.weight": tensor(-100.0, 50.0), "zero.bias": tensor(0.0, 0.0)},
    weights={"big.weight": tensor(1.0, -2.0), "zero.bias": tensor(0.1, 0.2)},
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
    assert relative_error(tensor(-8.0, 1.5), tensor(-8.0, 1.0), largest=1000.0) == 0.5 / 8
    assert relative_error(tensor(-4.0, 1.0), tensor(-8.0, 1.0), largest=1.0) == 0.5


def test_a_millionth_of_the_largest_tensor_is_the_least_scale():
    assert relative_error(tensor(1e-9), tensor(0.0), largest=100.0) == pytest.approx(1e-9 / 1e-4)
    assert relative_error(tensor(0.0), tensor(0.0), largest=0.0) == 0.0
    assert relative_error(tensor(1e-30), tensor(0.0), largest=0.0) == math.inf


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_is_never_equal(wrong):
    assert relative_error(tensor(wrong), tensor(1.0), largest=1.0) == math.inf
    assert relative_error(tensor(wrong), tensor(wrong), largest=1.0) == math.inf
    assert "loss" in compare(changed(loss={"loss": wrong, "entropy": 4.0}), REFERENCE, "float32").failed


def test_another_shape_is_never_equal():
    assert relative_error(tensor(1.0, 1.0), tensor(1.0), largest=1.0) == math.inf


@pytest.mark.parametrize(
    ("fields", "quantity", "deviation"),
    [
        ({"loss": {"loss": 2.002, "entropy": 4.0}}, "loss", Deviation(1e-3, "loss", 2)),
        ({"loss": {"loss": 2.0, "entropy": 4.004}}, "loss", Deviation(1e-3, "entropy", 2)),
        ({"loss": {"loss": 2.0}}, "loss", Deviation(math.inf, "entropy", 2)),
        ({"gradient_norm": 5.005}, "gradient norm", Deviation(1e-3, "global norm", 2)),
        (
            {"gradients": {**STEP.gradients, "zero.bias": tensor(0.0, 1e-7)}},
            "gradients",
            Deviation(1e-3, "zero.bias", 2),
        ),
        ({"weights": {**STEP.weights, "more.weight": tensor(1.0)}}, "weights", Deviation(math.inf, "more.weight", 2)),
    ],
)
def test_a_changed_number_is_told_with_its_quantity_name_and_step(fields, quantity, deviation):
    comparison = compare(changed(**fields), REFERENCE, "float64")
    assert comparison.failed == (quantity,)
    found = comparison.worst[quantity]
    assert (found.name, found.step) == (deviation.name, deviation.step)
    assert found.error == pytest.approx(deviation.error)


def test_a_changed_output_is_told_with_its_name():
    comparison = compare(
        replace(REFERENCE, outputs={"logprobs before training": tensor(-1.0, -4.4)}), REFERENCE, "float64"
    )
    assert comparison.failed == ("outputs",)
    assert str(comparison.worst["outputs"]) == "1.0e-01 logprobs before training"


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-9), ("float32", 1e-5)])
def test_the_limits_are_those_of_the_type(dtype, limit):
    assert compare(changed(gradient_norm=5.0 * (1 + 0.5 * limit)), REFERENCE, dtype).passed
    assert compare(changed(gradient_norm=5.0 * (1 + 2 * limit)), REFERENCE, dtype).failed == ("gradient norm",)


def test_weights_are_judged_in_float64_only():
    moved = changed(weights={**STEP.weights, "big.weight": tensor(1.0, -2.1)})
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
