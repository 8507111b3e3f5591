"""Sources of records: what they give, what they hold out and how they complain."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archon_core.errors import ConfigError, DataError
from archon_rl.data_options import ArithmeticOptions, HuggingFaceOptions
from archon_rl.datasets.arithmetic import arithmetic_dataset
from archon_rl.datasets.cursor import DataCursor
from archon_rl.datasets.hf import huggingface_dataset
from archon_rl.datasets.jsonl import jsonl_dataset
from archon_rl.rewards.arithmetic import final_number_reward
from archon_rl.tools.calculator import calculator
from archon_rl.tools.parsing.toolformer import PARSER
from archon_train.experiment import DataConfig


@dataclass
class Data(DataConfig):
    """``data`` with the sections of this package, as the merged configuration has it."""

    arithmetic: ArithmeticOptions = field(default_factory=ArithmeticOptions)
    hf: HuggingFaceOptions = field(default_factory=HuggingFaceOptions)


def contents(dataset) -> list[dict]:
    return [dict(dataset[i]) for i in range(len(dataset))]


def write_lines(path, lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return str(path)


RECORDS = [{"question": f"é{i}", "answer": str(i), "id": i} for i in range(10)]


def test_jsonl_gives_every_record_in_order_and_skips_empty_lines(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [RECORDS[0], "", *RECORDS[1:], ""])
    assert contents(jsonl_dataset(Data(path=path), split="train", seed=1)) == RECORDS


def test_jsonl_holds_out_records_that_are_not_trained_on(tmp_path):
    config = Data(path=write_lines(tmp_path / "a.jsonl", RECORDS), validation_size=3)
    train = contents(jsonl_dataset(config, split="train", seed=1))
    held_out = contents(jsonl_dataset(config, split="validation", seed=1))
    assert len(held_out) == 3
    assert sorted([*train, *held_out], key=lambda record: record["id"]) == RECORDS
    assert contents(jsonl_dataset(config, split="validation", seed=1)) == held_out
    assert contents(jsonl_dataset(config, split="validation", seed=2)) != held_out


def test_jsonl_reads_the_held_out_records_from_their_own_file(tmp_path):
    config = Data(
        path=write_lines(tmp_path / "a.jsonl", RECORDS[:6]),
        validation_path=write_lines(tmp_path / "b.jsonl", RECORDS[6:]),
    )
    assert contents(jsonl_dataset(config, split="train", seed=1)) == RECORDS[:6]
    assert contents(jsonl_dataset(config, split="validation", seed=1)) == RECORDS[6:]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a", ', r"a\.jsonl:2: not JSON: .* at column \d+; every line must hold one JSON object"),
        ("[1, 2]", r"a\.jsonl:2: found a list; every line must hold one JSON object"),
        (
            '{"question": "a", "answr": "b"}',
            r"a\.jsonl:2: found no field 'answer' among 'question', 'answr'.*mean 'answr'",
        ),
    ],
)
def test_jsonl_names_file_and_line_of_a_bad_record(tmp_path, line, message):
    path = write_lines(tmp_path / "a.jsonl", [RECORDS[0], line])
    with pytest.raises(DataError, match=message):
        jsonl_dataset(Data(path=path), split="train", seed=1)


def test_jsonl_without_a_path_says_how_to_give_one():
    with pytest.raises(ConfigError, match=r"data\.path: found none, .* add data\.path=train\.jsonl"):
        jsonl_dataset(Data(), split="train", seed=1)


def test_jsonl_names_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.path: found no file '.*none\.jsonl'"):
        jsonl_dataset(Data(path=str(tmp_path / "none.jsonl")), split="train", seed=1)


def test_holding_out_everything_is_an_error(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", RECORDS)
    with pytest.raises(
        ConfigError, match=r"validation_size: found 10, and a data set of 10 records; allowed is 0 to 9"
    ):
        jsonl_dataset(Data(path=path, validation_size=10), split="train", seed=1)


def terms(record):
    """``07+35=`` as ``("+", (7, 35))``."""
    a, symbol, b = re.fullmatch(r"(\d+)([-+*])(\d+)=", record["question"]).groups()
    return symbol, (int(a), int(b))


@settings(max_examples=30)
@given(
    limit=st.integers(1, 12),
    operators=st.sampled_from(["+", "-", "*", "+-", "+-*"]),
    zero_pad=st.booleans(),
    seed=st.integers(0, 2**31),
    draw=st.data(),
)
def test_no_held_out_problem_nor_its_mirror_image_is_trained_on(limit, operators, zero_pad, seed, draw):
    size = len(operators) * (limit + 1) ** 2
    held_out_size = draw.draw(st.integers(0, size // 3))
    config = Data(validation_size=held_out_size, arithmetic=ArithmeticOptions(limit, operators, zero_pad))
    train = contents(arithmetic_dataset(config, split="train", seed=seed))
    held_out = contents(arithmetic_dataset(config, split="validation", seed=seed))
    assert len(held_out) == held_out_size
    evaluate = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    for record in [*train, *held_out]:
        symbol, (a, b) = terms(record)
        assert evaluate[symbol](a, b) == int(record["answer"])
    trained, kept = {terms(r) for r in train}, {terms(r) for r in held_out}
    mirrored = {(symbol, (b, a)) for symbol, (a, b) in kept if symbol != "-"}
    assert not trained & (kept | mirrored)
    assert len(trained | kept | mirrored) == size


def test_a_share_of_the_answers_calls_the_calculator():
    config = Data(arithmetic=ArithmeticOptions(49, "*-", tool_demonstrations=0.5))
    records = list(arithmetic_dataset(config, split="train", seed=1))
    called = [record for record in records if record["answer"].startswith("[")]
    assert 0.45 < len(called) / len(records) < 0.55
    for record in called:
        problem = record["question"].removesuffix("=")
        (call,) = PARSER.parse(record["answer"].partition("->")[0] + "->").calls
        assert call.arguments == {"input": problem}
        result = calculator(problem)
        assert record["answer"] == f"[calculator({problem})->{result}] {result}"
        assert final_number_reward("", result, record) == 1.0
    again = list(arithmetic_dataset(config, split="train", seed=1))
    assert again == records


@pytest.mark.parametrize(("operators", "zero_pad"), [("+-*", False), ("+", True), ("-", True)])
def test_a_share_of_the_training_problems_follows_a_wrong_result(operators, zero_pad):
    config = Data(validation_size=200, arithmetic=ArithmeticOptions(49, operators, zero_pad, retry_demonstrations=0.3))
    records = list(arithmetic_dataset(config, split="train", seed=1))
    retries = [record for record in records if record["question"].count("=") > 1]
    assert 0.25 < len(retries) / len(records) < 0.35
    for record in retries:
        problem, wrong, again, end = record["question"].split("=")
        assert (problem, end) == (again, "")
        assert int(wrong) != int(record["answer"])
        assert abs(int(wrong) - int(record["answer"])) <= 20
        assert not zero_pad or len(wrong.lstrip("-")) == len(record["answer"].lstrip("-"))
    held_out = arithmetic_dataset(config, split="validation", seed=1)
    assert all(record["question"].count("=") == 1 for record in held_out)
    assert list(arithmetic_dataset(config, split="train", seed=1)) == records


def test_zero_padded_problems_all_have_the_same_width():
    config = Data(arithmetic=ArithmeticOptions(99, "+", zero_pad=True))
    dataset = arithmetic_dataset(config, split="train", seed=1)
    assert dict(dataset[735]) == {"question": "07+35=", "answer": "042"}
    assert {(len(r["question"]), len(r["answer"])) for r in contents(dataset)} == {(6, 3)}


def test_holding_out_so_much_that_only_mirror_images_are_left_is_an_error():
    config = Data(validation_size=3, arithmetic=ArithmeticOptions(1, "+"))
    # Of 0+0, 0+1, 1+0 and 1+1, the one that is left is the mirror image of a held-out one for some seeds.
    seeds = [seed for seed in range(40) if left_over(config, seed) in ("0+1=", "1+0=")]
    with pytest.raises(ConfigError, match="which leave none to train on without their mirror images"):
        arithmetic_dataset(config, split="train", seed=seeds[0])


def left_over(config, seed):
    """The only problem that is not held out."""
    held_out = {r["question"] for r in contents(arithmetic_dataset(config, split="validation", seed=seed))}
    [question] = {f"{a}+{b}=" for a in (0, 1) for b in (0, 1)} - held_out
    return question


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ArithmeticOptions(9, "+/"), r"operators: found '\+/'; allowed are"),
        (ArithmeticOptions(9, "++"), r"operators: found '\+\+'; .* each at most once"),
        (ArithmeticOptions(9, ""), r"operators: found ''"),
        (ArithmeticOptions(0), r"max_operand: found 0; allowed are numbers from 1"),
        (ArithmeticOptions(10**5), r"gives 10,000,200,001 problems; allowed are at most 20,000,000"),
    ],
)
def test_arithmetic_refuses_a_size_it_cannot_enumerate(options, message):
    with pytest.raises(ConfigError, match=message):
        arithmetic_dataset(Data(arithmetic=options), split="train", seed=1)


def test_huggingface_data_sets_are_read_and_cut(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the optional dependency datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    write_lines(folder / "train.jsonl", RECORDS)
    write_lines(folder / "test.jsonl", RECORDS[:2])
    path = str(folder)
    assert contents(huggingface_dataset(Data(path=path), split="train", seed=1)) == RECORDS
    named = Data(path=path, hf=HuggingFaceOptions(validation_split="test"))
    assert contents(huggingface_dataset(named, split="validation", seed=1)) == RECORDS[:2]
    other = Data(path=path, validation_path=str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    write_lines(tmp_path / "other" / "train.jsonl", RECORDS[3:6])
    assert contents(huggingface_dataset(other, split="validation", seed=1)) == RECORDS[3:6]
    assert contents(huggingface_dataset(other, split="train", seed=1)) == RECORDS
    assert len(huggingface_dataset(Data(path=path, validation_size=4), split="validation", seed=1)) == 4
    with pytest.raises(ConfigError, match=r"found split 'train' of .*, which is the training data"):
        huggingface_dataset(Data(path=path, validation_path=path), split="validation", seed=1)
    with pytest.raises(DataError, match=r"found no field 'text' among 'question', 'answer', 'id'"):
        huggingface_dataset(Data(path=path, prompt_key="text"), split="train", seed=1)
    with pytest.raises(ConfigError, match=r"split 'dev': datasets could not load it"):
        huggingface_dataset(Data(path=path, hf=HuggingFaceOptions(split="dev")), split="train", seed=1)


def test_a_missing_optional_dependency_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'archon-rl\[datasets\]'"):
        huggingface_dataset(Data(path="openai/gsm8k"), split="train", seed=1)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 100))
def test_every_record_is_seen_once_per_epoch_in_an_order_that_depends_on_the_step_alone(n_records, batch_size, seed):
    batch_size = min(batch_size, n_records)
    cursor = DataCursor(n_records, batch_size, seed)
    steps = cursor.steps(epochs=3)
    seen = [index for step in range(steps) for index in cursor.indices(step)]
    for epoch in range(len(seen) // n_records):
        assert sorted(seen[epoch * n_records : (epoch + 1) * n_records]) == list(range(n_records))
    assert cursor.indices(steps // 2) == DataCursor(n_records, batch_size, seed).indices(steps // 2)
    assert len(seen) > 3 * n_records - batch_size


def test_epochs_have_different_orders_and_an_unshuffled_cursor_none():
    cursor = DataCursor(20, 20, seed=3)
    assert cursor.indices(0) != cursor.indices(1)
    assert DataCursor(5, 3, seed=3, shuffle=False).indices(1) == [3, 4, 0]
    assert DataCursor(5, 3, seed=3).position(2) == (1, 1)


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_must_fit_into_the_data(batch_size):
    with pytest.raises(
        ConfigError, match=rf"batch_size: found {batch_size}, and 10 training records; allowed is 1 to 10;"
    ):
        DataCursor(10, batch_size, seed=1)
