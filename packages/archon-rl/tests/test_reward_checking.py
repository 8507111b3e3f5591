"""A reward is one finite number; anything else is an error that names reward, record and value."""

from __future__ import annotations

import json
import math
import pickle
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from archon_core.errors import ConfigError, DataError, PluginError, RewardError
from archon_rl.datasets.jsonl import read_jsonl
from archon_rl.datasets.placed_record import read_placed
from archon_rl.datasets.records import SubsetDataset
from archon_rl.fields import Fields
from archon_rl.rewards.checking import NamedReward, checked_reward


def check(function) -> float:
    return checked_reward(NamedReward("mine", function), "2+3=", "it is 5", {"answer": "5"}, place="problems.jsonl:3")


def check_value(value) -> float:
    return check(lambda prompt, completion, record: value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (0.25, 0.25),
        (-3, -3.0),
        (True, 1.0),
        (False, 0.0),
        (Fraction(1, 4), 0.25),
        (Decimal("0.5"), 0.5),
        (np.float64(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.int32(2), 2.0),
        (np.bool_(True), 1.0),
        (np.array(1.5), 1.5),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([2]), 2.0),
        (torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True), 0.5),
        (torch.tensor(True), 1.0),
        (3.4e38, 3.4e38),
    ],
)
def test_numbers_and_booleans_of_python_numpy_and_torch_are_rewards(value, expected):
    found = check_value(value)
    assert type(found) is float
    assert found == expected


@pytest.mark.parametrize(
    "value",
    [
        None,
        math.nan,
        math.inf,
        -math.inf,
        10**400,
        1e39,
        "1.0",
        b"1",
        np.str_("1"),
        1 + 0j,
        [1.0],
        (1.0, "reason"),
        {"score": 1.0},
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("Infinity"),
        np.float32("nan"),
        np.array([1.0, 2.0]),
        torch.tensor(math.nan),
        torch.tensor([1.0, 0.0]),
        torch.tensor(1 + 0j),
        object(),
        int,
    ],
    ids=lambda value: type(value).__name__ if type(value) is object else repr(value),
)
def test_anything_else_is_an_error_that_names_reward_record_value_and_completion(value):
    with pytest.raises(RewardError) as caught:
        check_value(value)
    message = str(caught.value)
    assert message.startswith("problems.jsonl:3: reward 'mine': it returned ")
    assert repr(value)[:80] in message
    assert "must be one finite number" in message
    assert "'it is 5'" in message


def test_an_exception_is_an_error_with_its_own_message_and_the_line_of_the_reward():
    def sandboxed(prompt, completion, record):
        raise TimeoutError("sandbox did not answer")

    line = sandboxed.__code__.co_firstlineno + 1
    place = rf"\(test_reward_checking\.py:{line} in sandboxed\)"
    with pytest.raises(
        RewardError, match=rf"^problems\.jsonl:3: reward 'mine': it raised TimeoutError: sandbox did not answer {place}"
    ) as caught:
        check(sandboxed)
    assert isinstance(caught.value.__cause__, TimeoutError)


def test_an_exception_from_inside_a_library_names_the_line_of_the_reward_that_called_it():
    def parsing(prompt, completion, record):
        return json.loads(completion)

    with pytest.raises(RewardError, match=r"JSONDecodeError: .* \(test_reward_checking\.py:\d+ in parsing\)"):
        check(parsing)


def test_a_function_with_other_parameters_is_an_error_of_the_reward():
    with pytest.raises(RewardError, match=r"it raised TypeError: .* positional argument"):
        check(lambda completion: 1.0)


def test_a_reward_that_calls_exit_does_not_end_the_run_as_a_success():
    with pytest.raises(RewardError, match="it raised SystemExit: 0"):
        check(lambda prompt, completion, record: sys.exit(0))


def test_errors_of_ours_keep_their_message_and_only_a_configuration_error_its_class():
    class OwnError(DataError):
        def __init__(self, record, reason):
            super().__init__(f"{record}: {reason}")

    def complaining(error):
        def function(prompt, completion, record):
            raise error

        return function

    for error in (DataError("no answer"), PluginError("no answer"), OwnError("no", "answer")):
        with pytest.raises(RewardError, match=r"^problems\.jsonl:3: no:? answer$"):
            check(complaining(error))
    with pytest.raises(ConfigError, match=r"^problems\.jsonl:3: no judge$"):
        check(complaining(ConfigError("no judge")))


def test_an_interrupt_is_not_a_failure_of_the_reward():
    def interrupted(prompt, completion, record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(interrupted)


def test_records_of_a_file_know_their_line_through_subsets_and_pickling(tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text('{"q": "a"}\n\n{"q": "b"}\n{"q": "c"}\n')
    subset = SubsetDataset(SubsetDataset(read_jsonl(file, Fields("q", None)), [2, 1]), [1])
    record = read_placed(subset, 0)
    assert record == {"q": "b"}
    assert record.place == pickle.loads(pickle.dumps(record)).place == f"{file}:3"


def test_records_of_other_sources_are_known_by_their_number_in_the_whole_data_set():
    subset = SubsetDataset(SubsetDataset([{"q": str(i)} for i in range(5)], [4, 3, 0]), [1, 2])
    places = [read_placed(subset, index).place for index in range(2)]
    assert places == ["record 3 (counted from 0)", "record 0 (counted from 0)"]


class UnreadableError(Exception):
    def __str__(self):
        raise RuntimeError("no message")


class UnreadableNumber:
    def item(self):
        raise KeyError("x")


def test_objects_and_exceptions_that_fail_to_describe_themselves_are_errors_of_the_reward():
    def raises(prompt, completion, record):
        raise UnreadableError

    with pytest.raises(RewardError, match=r"it raised UnreadableError \(.*in raises\); correct the function"):
        checked_reward(NamedReward("r", raises), "p", "c", {}, place="f:1")
    with pytest.raises(RewardError, match=r"it returned <.*UnreadableNumber"):
        checked_reward(NamedReward("r", lambda *_: UnreadableNumber()), "p", "c", {}, place="f:1")
