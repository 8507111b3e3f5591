"""Which values of a record can be trained on, and how a key leads to them."""

from __future__ import annotations

import math

import pytest

from archon_core.errors import DataError
from archon_rl.fields import Fields, read_field

USER = {"role": "user", "content": "2+3?"}
FIVE = {"role": "assistant", "content": "5"}


def prompt(value):
    return Fields("prompt", None).prompt({"prompt": value})


@pytest.mark.parametrize(
    ("value", "text"), [("a", "a"), ("", ""), (5, "5"), (-2.5, "-2.5"), (10**400, "1" + "0" * 400)]
)
def test_text_and_numbers_are_text(value, text):
    assert prompt(value) == text


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "found null; allowed are text, a number, or a list of messages"),
        (True, "found true;"),
        (False, "found false;"),
        (math.nan, r"found nan \(not a finite number\);"),
        (math.inf, r"found inf \(not a finite number\);"),
        ({"a": 1}, "found an object;"),
        (b"abc", "found a bytes;"),
        pytest.param(10**5000, "an integer of more than 4,300 digits", id="digits"),
        ("q\ud83d", "an unpaired surrogate"),
        ([], "found an empty list;"),
        (["a", "b"], "message 1: found text in a list;"),
        ([USER, None], "message 2: found null in a list;"),
        ([{"from": "human", "value": "2+3?"}], "message 1: found null as the role, and the entries 'from', 'value';"),
        ([{"role": "user"}], r"message 1 \(user\): found null as the content;"),
        ([{"role": "user", "content": None}], r"message 1 \(user\): found null as the content;"),
        ([{"role": "user", "content": 5}], r"message 1 \(user\): found a number as the content;"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
            "found a list as the content; allowed is text",
        ),
        ([{"role": "user", "content": "\udc80"}], r"message 1: text .* an unpaired surrogate"),
    ],
)
def test_everything_else_is_an_error_that_names_option_and_value(value, found):
    with pytest.raises(DataError, match=rf"data\.prompt_key='prompt'.*{found}"):
        prompt(value)


def test_an_answer_that_is_an_object_says_how_a_reward_can_read_it():
    with pytest.raises(DataError, match=r"data\.answer_key='answer': found an object; .* set data\.answer_key=null"):
        Fields("prompt", "answer").answer({"prompt": "a", "answer": {"target": ["a", "b"]}})


def test_messages_lose_their_empty_entries():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
    found = prompt([{**USER, "tool_calls": None, "name": "me"}, call])
    assert found == ({**USER, "name": "me"}, {"role": "assistant", "tool_calls": [{"name": "add"}]})


def test_dots_lead_into_nested_objects_unless_a_field_has_the_whole_name():
    record = {"reward_model": {"ground_truth": "5", "style": "rule"}, "a.b": "whole", "a": {"b": "nested"}}
    assert read_field(record, "reward_model.ground_truth") == "5"
    assert read_field(record, "a.b") == "whole"
    for missing in ("reward_model.truth", "reward_model.style.name", "reward_modl", ""):
        with pytest.raises(DataError, match=r"found no field .* among 'reward_model', 'a\.b', 'a'"):
            read_field(record, missing)


def test_a_whole_conversation_needs_no_answer():
    fields = Fields("messages", "answer")
    assert fields.answer({"messages": [USER, FIVE]}) is None
    assert fields.answer({"messages": [USER, FIVE], "answer": "5"}) == "5"
    with pytest.raises(DataError, match="and no field 'answer' with an answer"):
        fields.answer({"messages": [USER]})
    assert Fields("messages", None).answer({"messages": [USER]}) is None


def test_a_conversation_that_ends_with_another_turn_and_has_no_answer_says_what_is_missing():
    record = {"messages": [{"role": "system", "content": "s"}]}
    with pytest.raises(DataError, match="ends with a turn of 'system', and no field 'answer' with an answer; end the"):
        Fields("messages", "answer").check(record)
