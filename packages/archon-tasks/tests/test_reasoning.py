"""``reasoning_gym``: generated problems of both splits, and their scores."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest

from archon_core.errors import ConfigError, DataError
from archon_tasks.config import ReasoningGymOptions
from archon_tasks.reasoning.dataset import ENTRY, ReasoningDataset, reasoning_dataset
from archon_tasks.reasoning.generation import generate

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="archon-tasks[reasoning-gym] is not installed"
)

SUMS = {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}, "gcd": None}


def configuration(tasks=SUMS, *, size=20, validation_size=6, seed=None, instruction="", keys=("question", "answer")):
    options = ReasoningGymOptions(tasks=tasks, size=size, seed=seed, instruction=instruction)
    return SimpleNamespace(
        reasoning_gym=options, validation_size=validation_size, prompt_key=keys[0], answer_key=keys[1]
    )


def load(config, split="train", seed=1) -> ReasoningDataset:
    return reasoning_dataset(config, split=split, seed=seed)


@pytest.fixture(scope="module")
def splits() -> dict[str, ReasoningDataset]:
    config = configuration()
    return {split: load(config, split) for split in ("train", "validation")}


def test_tasks_take_turns_and_records_say_where_they_come_from(splits):
    train = splits["train"]
    assert (len(train), len(splits["validation"])) == (20, 6)
    tasks = [record[ENTRY]["metadata"]["source_dataset"] for record in train.records]
    assert set(tasks) == {"chain_sum", "gcd"}
    assert 8 <= tasks.count("gcd") <= 12
    assert train.where(3) == f"problem 3 of reasoning-gym ({tasks[3]})"
    assert train[0]["question"] == train[0][ENTRY]["question"]
    assert all(isinstance(record["answer"], str) for record in train.records)


def test_no_training_problem_is_held_out_and_held_out_problems_are_different(splits):
    held_out = [record["question"] for record in splits["validation"].records]
    assert len(set(held_out)) == len(held_out)
    assert not set(held_out) & {record["question"] for record in splits["train"].records}


@pytest.mark.wide
def test_the_problems_are_a_function_of_the_seed_in_every_process():
    # This task draws from a set of words, whose order differs between processes.
    program = (
        "from archon_tasks.config import ReasoningGymOptions as O; from types import SimpleNamespace as N;"
        "from archon_tasks.reasoning.dataset import reasoning_dataset as load;"
        "c = N(reasoning_gym=O(tasks={'isomorphic_strings': None}, size=3, seed=SEED), validation_size=0,"
        " prompt_key='q', answer_key='a'); print([r['q'] for r in load(c, split='train', seed=5).records])"
    )

    def problems(seed: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", program.replace("SEED", seed)], capture_output=True, text=True, check=True
        ).stdout

    first = problems("None")
    assert first == problems("None")
    assert first != problems("7")


def test_the_child_process_has_one_order_of_sets(monkeypatch):
    found = []

    def run(command, **options):
        found.append(options["env"]["PYTHONHASHSEED"])
        return SimpleNamespace(returncode=0, stdout=pickle.dumps({"train": [], "validation": []}))

    monkeypatch.setattr(subprocess, "run", run)
    load(configuration(seed=99))
    assert found == ["0"]


def test_what_ends_the_child_process_is_an_error(monkeypatch):
    failed = SimpleNamespace(returncode=1, stdout=b"", stderr=b"Traceback\nMemoryError: too many")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: failed)
    with pytest.raises(ConfigError, match=r"could not generate the problems \(MemoryError: too many\)"):
        load(configuration(seed=98))


@pytest.fixture
def in_process(monkeypatch):
    """Generate in this process, which is faster."""

    def run(command, **options):
        try:
            result = generate(json.loads(command[3]))
        except ConfigError as error:
            result = {"error": str(error)}
        return SimpleNamespace(returncode=0, stdout=pickle.dumps(result))

    monkeypatch.setattr(subprocess, "run", run)


def test_keys_and_instruction_shape_the_record(in_process):
    record = load(configuration(size=1, validation_size=0, keys=("q", "a"), instruction="Answer in one word."))[0]
    assert record["q"] == f"{record[ENTRY]['question']}\n\nAnswer in one word."
    assert record["a"] == record[ENTRY]["answer"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, r"data\.reasoning_gym\.tasks: found none; name at least one"),
        ({"chain_sums": None}, r"tasks: found 'chain_sums'; allowed are .*; did you mean 'chain_sum'\?$"),
        (
            {"gcd": {"min_number": 1}},
            r"tasks\.gcd: found the option 'min_number'; allowed are .*; did you mean 'min_nu",
        ),
        (
            {"gcd": {"min_value": 9, "max_value": 2}},
            r"tasks\.gcd: found min_value=9, max_value=2; reasoning-gym refuses",
        ),
        ({"gcd": 3}, r"tasks\.gcd: found 3; allowed are options of the task, or null"),
    ],
)
def test_tasks_that_cannot_be_are_refused(in_process, tasks, message):
    with pytest.raises(ConfigError, match=message):
        load(configuration(tasks))


def test_more_problems_than_the_tasks_have_are_refused(in_process):
    digits = {"gcd": {"min_numbers": 2, "max_numbers": 2, "min_value": 1, "max_value": 2}}
    with pytest.raises(ConfigError, match=r"data\.validation_size: found 50, and 20 times as many draws .*lower it"):
        load(configuration(digits, validation_size=50))
    with pytest.raises(ConfigError, match=r"data\.reasoning_gym\.size: found 20, and .* gave 0 problems"):
        load(configuration(digits, validation_size=4))


def test_fields_of_nested_names_are_refused():
    with pytest.raises(ConfigError, match=r"allowed are plain names"):
        load(configuration(keys=("extra.question", "answer")))


def test_the_score_is_that_of_the_task_with_and_without_tags(splits):
    from archon_tasks.reasoning.reward import reasoning_reward

    for record in splits["train"].records[:4]:
        right = record["answer"]
        assert reasoning_reward("", right, record) == 1.0
        assert reasoning_reward("", f"<answer>0</answer> no: <answer> {right} </answer>", record) == 1.0
        assert reasoning_reward("", f"<answer>x{right}7</answer>", record) < 1.0


def test_a_record_of_another_data_set_is_an_error_of_the_data():
    from archon_tasks.reasoning.reward import reasoning_reward

    with pytest.raises(DataError, match=r"without the field 'reasoning_gym'; set data\.dataset=reasoning_gym"):
        reasoning_reward("", "5", {"answer": "5"})
