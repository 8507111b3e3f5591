"""The tool ``calculator``."""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archon_rl.tools.calculator import calculator
from archon_rl.tools.expressions.limits import ExpressionError


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3*(4+5)/2", "13.5"),
        ("6/2", "3"),
        ("-7//2 + 7%3", "-3"),
        ("2**-1", "0.5"),
        ("2**100", "1267650600228229401496703205376"),
        ("12\u00d73\u22124\u00f72", "34"),
        (" 1_000 + .5 ", "1000.5"),
        ("007*06 + 1.05 + 0 + 00.5", "43.55"),
    ],
)
def test_it_computes_arithmetic(expression: str, value: str) -> None:
    assert calculator(expression) == value


@given(st.lists(st.tuples(st.sampled_from("+-*"), st.integers(-999, 999)), min_size=1, max_size=12), st.booleans())
def test_whole_numbers_are_exact(terms: list[tuple[str, int]], is_divided: bool) -> None:
    expression, value = "0", Fraction(0)
    for sign, number in terms:
        expression = f"({expression}){sign}({number})"
        value = {"+": value + number, "-": value - number, "*": value * number}[sign]
    if is_divided:
        expression, value = f"({expression})//7", Fraction(value // 7)
    assert calculator(expression) == str(value.numerator)


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("", "invalid syntax"),
        ("2 +", "invalid syntax"),
        ("2^3", "write [*][*] for a power"),
        ("x + 1", "found 'x'"),
        ("True + 1", "found 'True'"),
        ("'a' * 3", "found"),
        ("abs(-1)", "found 'abs"),
        ("(1).real", "found"),
        ("1, 2", "found"),
        ("1/0", "division by zero"),
        ("5 % 0", "division by zero"),
        ("(-8)**0.5", "no real number"),
        ("9**9**9", "more than 6020 digits"),
        ("(9**5000)*(9**5000)", "more than 6020 digits"),
        ("10**5000", "more than 4300 digits"),
        ("1e308*10", "too large"),
        ("2.0**10000", "too large"),
        ("1e999-1e999", "too large"),
        ("1" * 1001, "at most 1000"),
        ("(" * 300 + "1" + ")" * 300, "nested too deeply|too many nested"),
        ("1\x00", "invalid"),
    ],
)
def test_what_has_no_value_is_explained(expression: str, problem: str) -> None:
    with pytest.raises(ExpressionError, match=problem):
        calculator(expression)


@given(st.text("0123456789.+-*/()% e", max_size=40))
def test_any_text_has_a_value_or_an_explanation(expression: str) -> None:
    with contextlib.suppress(ExpressionError):
        assert math.isfinite(float(calculator(expression)))
