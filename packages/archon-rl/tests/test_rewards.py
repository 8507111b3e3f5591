"""Rewards about numbers: what they read from a text, written down case by case, and what they pay for it."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archon_core.errors import DataError
from archon_rl.rewards.arithmetic import final_number_reward
from archon_rl.rewards.gsm8k import gsm8k_reward
from archon_rl.rewards.number_reading import Number, answer_number, last_number

LAST_NUMBERS = {
    "plain": {
        "72": 72,
        "x is 3.": 3,
        "12.": 12,
        "12.00": 12,
        "007": 7,
        "0.50": "1/2",
        "so the share is .5": "1/2",
        "$.50": "1/2",
        "3.14159": "314159/100000",
        "1, 2": 2,
        "5 apples (3 red, 2 green)": 2,
        "5.The end": 5,
        "...5": 5,
        "1..5": 5,
        "f(5)": 5,
        "no 5!": 5,
    },
    "signs": {
        "-5": -5,
        "= -5": -5,
        "x = - 5": -5,
        "(-5)": -5,
        "-(5)": -5,
        "+5": 5,
        "\u22125": -5,
        "The temperature is \u22123": -3,
        "\u20135": -5,
        "\uff0d5": -5,
        "negative 5": -5,
        "it is minus 5": -5,
        "10 minus 5": 5,
        "-.5": "-1/2",
        "-$5": -5,
        "$-5": -5,
        "\u2212\u20ac5": -5,
        "12-5=7": 7,
        "5-3": 3,
        "5 - 3": 3,
        "5\u22123": 3,
        "12-34": 34,
        "3\u20135": 5,
        "(3)-5": 5,
        "50%-60%": "60%",
        "a - 5": 5,
        "\u2014 5": 5,
        "--5": 5,
        "\u6e29\u5ea6\u662f-5": -5,
    },
    "digit groups": {
        "1,234,567": 1234567,
        "so it is 1,048,576.": 1048576,
        "1,000.50": "2001/2",
        "1 234 567": 1234567,
        "1\u00a0234": 1234,
        "1\u202f234.5": "2469/2",
        "1\u2009234": 1234,
        "1_000": 1000,
        "1'000": 1000,
        "1\u2019000": 1000,
        r"1{,}234": 1234,
        r"1\,234": 1234,
        r"1,\!234": 1234,
        "1,000, 2,000": 2000,
    },
    "exponents": {
        "that is 1e3": 1000,
        "1E+3": 1000,
        "1.5e-3": "3/2000",
        "2e\u22123": "1/500",
        "3 x 10^5": 300000,
        "3\u00d710\u2075": 300000,
        "3*10**2": 300,
        r"1.5 \times 10^{-2}": "3/200",
        r"2 \cdot 10^3": 2000,
        "10^5": 100000,
        "2 million": 2000000,
        "$1.5 billion": 1500000000,
        "3 hundred thousand": 300000,
    },
    "fractions": {
        "it is 1/2": "1/2",
        "-1/2": "-1/2",
        "12 / 4": 3,
        "6/-2": -3,
        "0.5/2": "1/4",
        "1 1/2": "3/2",
        "-2 3/4 cups": "-11/4",
        "\u00bd": "1/2",
        "1\u00bd": "3/2",
        "\u2153": "1/3",
        "1\u20442": "1/2",
        r"\frac{1}{2}": "1/2",
        r"-\frac{1}{2}": "-1/2",
        r"\frac{-1}{2}": "-1/2",
        r"1\frac{1}{2}": "3/2",
        r"\frac12": "1/2",
        r"\dfrac{3}{4}": "3/4",
        "5/day": 5,
        "1/0, or 7": 7,
    },
    "units and decoration": {
        "$0.50 each": "1/2",
        "5\u20ac": 5,
        "5 km": 5,
        "5km": 5,
        "5 km/h": 5,
        "20\u00b0C": 20,
        r"90^\circ": 90,
        "5-year plan": 5,
        "**-5**": -5,
        "__5__": 5,
        "`5`": 5,
        "$-5$": -5,
        r"\(5\)": 5,
        r"\$5": 5,
        r"5\text{ apples}": 5,
        r"\boxed{-5}": -5,
        "5\u500b": 5,
        "\uff15": 5,
        "\u0665": 5,
        "48/2 = <<48/2=24>>24": 24,
    },
}
"""Kind -> text -> its last number."""

NOT_NUMBERS = [
    "",
    "none",
    "-",
    "####",
    ". , -",
    "1,23",
    "0,5",
    "1.234,50",
    "1,2,3",
    "1.2.3",
    "192.168.0.1",
    "2024-01-05",
    "01/02/2024",
    "12 / 3 / 2",
    "12:30",
    "3:2",
    "5'11\"",
    "x2",
    "2x",
    "2\u03c0",
    "H2O",
    "COVID-19",
    "x-5",
    "No.5",
    "Python 3.x",
    "0x1F",
    "1e3f",
    "5th",
    "5k",
    "2^3",
    "5\u00b2",
    "2**3",
    "10^x",
    "\u221a9",
    "2\u221a3",
    "\u00b15",
    "1-1/2",
    "1/0",
    r"2\sqrt{3}",
    r"\sqrt{16}",
    r"\sqrt[3]{8}",
    r"x^{2}",
    r"a_{2}",
    r"x\u2082",
    r"\frac{x}{2}",
    r"\frac{\sqrt{3}}{2}",
    r"2 \pi",
    r"\pm 5",
    r"0.\overline{3}",
    "1e999999999",
    "1e-999999999",
    "7" * 5000,
    "0." + "7" * 5000,
    "1e" + "9" * 5000,
    "1/" + "7" * 5000,
]
"""Texts whose digits are all part of something else, or too many."""

ANSWERS = {
    # A box decides, wherever it stands; the last box counts.
    r"so \boxed{5}, since 3 + 4 = 7": 5,
    r"\boxed{4}, or rather \boxed{5}": 5,
    r"\boxed{x = 5}": 5,
    r"\boxed{3+2=5}": 5,
    r"\boxed{- 5}": -5,
    r"-\boxed{5}": -5,
    r"- \boxed{5}": 5,
    r"\boxed{\text{Answer: } -5}": -5,
    r"\boxed{\text{(A) } 5}": 5,
    r"\boxed{50 \text{ cm}^2}": 50,
    r"\boxed{50 cm^2}": 50,
    r"\boxed{7\text{ m/s}}": 7,
    r"\boxed{\frac{1}{2}}": "1/2",
    r"\boxed{\$1{,}234.50}": "2469/2",
    r"\boxed{\textbf{5}}": 5,
    r"\fbox{5}": 5,
    # Several numbers, an expression, a part of a value: no number, though there are some elsewhere.
    r"7, so \boxed{5, 7}": None,
    r"7, so \boxed{(5, 7)}": None,
    r"7, so \boxed{x + 7}": None,
    r"7, so \boxed{x*7}": None,
    r"7, so \boxed{x -7}": None,
    r"7, so \boxed{3 - 7}": None,
    r"7, so \boxed{7x}": None,
    r"7, so \boxed{7\sqrt{2}}": None,
    r"7, so \boxed{x \geq 7}": None,
    r"7, so \boxed{7!}": None,
    r"7, so \boxed{7:2}": None,
    r"7, so \boxed{}": None,
    r"7, so \boxed{7": None,
    # A mark with nothing else on its line; otherwise it is a heading.
    "#### 42": 42,
    "#### 42\nLet me check: 40 + 2 = 42, so 7 was wrong.": 42,
    "#### -3": -3,
    "#### - 3": -3,
    "#### **42**.": 42,
    "#### 1. Add them\nThis gives 7": 7,
    "#### Step 2\nThis gives 7": 7,
    r"#### 42" + "\n" + r"no, \boxed{43}": 43,
    r"\boxed{43}" + "\n#### 42": 42,
    # Nothing marked: the last number.
    "the answer is 42": 42,
}
"""Text -> the number of its answer, for data that has no convention about ``####``."""

MARKED_ANSWERS = {
    "#### 42 because 40 + 2 = 42, not 7": 42,
    "#### 42 of 5000": 42,
    "#### $42 per day": 42,
    "#### 1,000": 1000,
    "####42": 42,
    "####\n42": 42,
    "#### Answer: 42\nThis is not 7": 42,
    "#### The answer is -42": -42,
    "#### **The answer is 42**": 42,
    "#### Answer: **-42**": -42,
    "#### x = 42": 42,
    "#### 40 + 2 = 42": 42,
    r"#### $\boxed{42}$": 42,
    r"#### \frac{1}{2}": "1/2",
    "#### 5\n#### 42": 42,
    "#### 50%": "50%",
    "#### 42-50": None,
    "#### 40 + 2": None,
    "#### 42x": None,
    "42 ####": None,
    "42 #### none": None,
}
"""The same where ``####`` always marks the answer, as in GSM8K."""


def number(value) -> Number | None:
    if value is None:
        return None
    text = str(value)
    return Number(Fraction(text.rstrip("%")), text.endswith("%"))


def cases(table):
    return [pytest.param(text, value, id=ascii(text)[:60]) for text, value in table.items()]


@pytest.mark.parametrize(("text", "value"), cases({t: v for kind in LAST_NUMBERS.values() for t, v in kind.items()}))
def test_the_last_number_of_a_text_is_read_exactly(text, value):
    assert last_number(text) == number(value)
    assert last_number(f"Of 17, I find\n{text}") == number(value)


@pytest.mark.parametrize("text", NOT_NUMBERS, ids=lambda text: ascii(text)[:60])
def test_a_number_that_is_only_part_of_something_else_is_not_read(text):
    assert last_number(text) is None
    assert answer_number(text) is None
    assert last_number(f"17 then {text}") == number(17)


@pytest.mark.parametrize(("text", "value"), cases(ANSWERS))
def test_the_marked_number_decides_and_else_the_last(text, value):
    assert answer_number(text) == number(value)


@pytest.mark.parametrize(("text", "value"), cases(MARKED_ANSWERS))
def test_with_a_convention_the_hash_mark_always_decides(text, value):
    assert answer_number(text, hash_mark=True) == number(value)


@pytest.mark.parametrize(
    ("answer", "completion", "reward"),
    [
        ("50%", "50%", 1.0),
        ("50", "50%", 1.0),
        ("50%", "50", 1.0),
        ("0.5", "50%", 1.0),
        ("50%", "1/2", 1.0),
        ("50", "50 percent", 1.0),
        ("50", r"\boxed{50\%}", 1.0),
        ("5%", "50%", 0.0),
        ("5000", "50%", 0.0),
        ("0.5%", "50%", 0.0),
    ],
)
def test_a_percentage_is_the_number_before_the_sign_or_a_hundredth_of_it(answer, completion, reward):
    assert final_number_reward("", completion, {"answer": answer}) == reward


@pytest.mark.parametrize(
    ("answer", "completion", "reward"),
    [
        ("7", "7", 1.0),
        ("7", "3+4=7", 1.0),
        ("7", "7.0", 1.0),
        ("042", "42", 1.0),
        ("7", "8", 0.0),
        ("7", "77", 0.0),
        ("7", "-7", 0.0),
        ("7", "", 0.0),
        ("7", "a", 0.0),
        ("0.1", "0.1000000000000000055511151231257827", 0.0),
        ("1/3", "0.3333333333333333", 0.0),
        ("9007199254740993", "9007199254740992", 0.0),
        ("0.3", "3e-1", 1.0),
    ],
)
def test_arithmetic_pays_for_exactly_the_right_number(answer, completion, reward):
    assert final_number_reward("3+4=", completion, {"answer": answer}) == reward


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("She has 5.\n#### 1,072", 1.0),
        ("#### 5\n#### 1072", 1.0),
        ("the answer is 1072", 1.0),
        ("#### 1072 of 5000", 1.0),
        ("#### 5000 of 1072", 0.0),
        ("#### 5000\nI mean 1072", 0.0),
        ("1072 ####", 0.0),
        ("I do not know", 0.0),
    ],
)
def test_gsm8k_rewards_the_number_behind_the_last_mark(completion, reward):
    record = {"answer": "48/2 = <<48/2=24>>24\n#### 1,072"}
    assert gsm8k_reward("How many?", completion, record) == reward


@pytest.mark.parametrize(("name", "reward"), [("arithmetic", final_number_reward), ("gsm8k", gsm8k_reward)])
def test_a_record_without_a_number_is_an_error_and_not_a_reward(name, reward):
    with pytest.raises(
        DataError, match=rf"reward '{name}': found no number in the answer 'many'; set data\.answer_key"
    ):
        reward("", "many", {"answer": "many"})


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=3))
def test_every_decimal_is_read_as_it_is_written(value):
    grouped = f"{value:,}"
    for text in (str(value), grouped, grouped.replace("-", "\u2212"), f"**{grouped}**", rf"\boxed{{{value}}}"):
        found = answer_number(f"it is {text}")
        assert found is not None, text
        assert found.value == Fraction(value), text


@given(st.integers(1, 10**6), st.sampled_from(["x{}", "{}x", "1{}", "{}.1.2", "3:{}", "0,{}", "{}^2", "\u00b1{}"]))
def test_no_reward_is_paid_for_a_part(value, form):
    assert final_number_reward("", f"so it is {form.format(value)}", {"answer": str(value)}) == 0.0


@given(st.text(alphabet="0123456789.,-+/*^_{}()[]\\#$% \n\u2212\u00bd\u00b2\u221aexfracboxed", max_size=60))
def test_any_text_is_read_without_an_error(text):
    for found in (last_number(text), answer_number(text), answer_number(text, hash_mark=True)):
        assert found is None or found.value.denominator > 0


@pytest.mark.parametrize(
    "unit",
    [
        "1",
        "a",
        " ",
        "{",
        "}",
        "\\frac",
        "\\boxed{",
        "\\text{",
        "^{",
        "\u221a[",
        "1-",
        "1/",
        "1,",
        "1 000 ",
        "_1 ",
        "**",
        "= -",
        "#### ",
        "\n",
    ],
    ids=ascii,
)
def test_long_repetitive_texts_are_read(unit):
    # Patterns with nested repetition would take hours for these.
    text = unit * (20_000 // len(unit))
    for whole in (text, f"#### 5{text}", f"\\boxed{{{text}}}", f"{text}5"):
        last_number(whole)
        answer_number(whole)
        answer_number(whole, hash_mark=True)
