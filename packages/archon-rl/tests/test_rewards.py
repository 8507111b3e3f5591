"""Rewards read the final number, and survive completions without one."""

from decimal import Decimal

import pytest

from archon_core.errors import DataError
from archon_rl.rewards.arithmetic import final_number_reward
from archon_rl.rewards.gsm8k import gsm8k_reward
from archon_rl.rewards.numbers import last_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", "72"),
        ("so it is 1,048,576.", "1048576"),
        ("$0.50 each", "0.50"),
        ("12-5=7", "7"),
        ("12-5", "5"),
        ("(3)-5", "5"),
        ("= -5", "-5"),
        ("-5", "-5"),
        ("x is 3.", "3"),
        ("1, 2", "2"),
        ("1,23", "23"),
    ],
)
def test_the_last_number_is_read_as_written(text, number):
    assert last_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none", "-", "####", ". , -"])
def test_text_without_a_number_gives_none(text):
    assert last_number(text) is None


@pytest.mark.parametrize(
    ("completion", "reward"), [("7", 1.0), ("3+4=7", 1.0), ("7.0", 1.0), ("8", 0.0), ("77", 0.0), ("", 0.0), ("a", 0.0)]
)
def test_arithmetic_rewards_the_right_final_number(completion, reward):
    assert final_number_reward("3+4=", completion, {"answer": "7"}) == reward


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("She has 5.\n#### 1,072", 1.0),
        ("#### 5\n#### 1072", 1.0),
        ("the answer is 1072", 1.0),
        ("#### 1072 of 5000", 0.0),
        ("1072 ####", 0.0),
        ("I do not know", 0.0),
    ],
)
def test_gsm8k_rewards_the_number_behind_the_last_mark(completion, reward):
    record = {"answer": "48/2 = <<48/2=24>>24\n#### 1,072"}
    assert gsm8k_reward("How many?", completion, record) == reward


@pytest.mark.parametrize("reward", [final_number_reward, gsm8k_reward])
def test_a_record_without_a_number_is_an_error_and_not_a_reward(reward):
    with pytest.raises(DataError, match=r"'many' contains no number.*data\.answer_key"):
        reward("", "many", {"answer": "many"})
