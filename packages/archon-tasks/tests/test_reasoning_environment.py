"""The environment ``reasoning_gym``: tries, feedback and scores."""

from __future__ import annotations

import importlib.util

import pytest

from archon_core.errors import ConfigError, DataError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="archon-tasks[reasoning-gym] is not installed"
)

FEEDBACK = [{"role": "user", "content": "That answer is wrong. Try again."}]


@pytest.fixture(scope="module")
def record():
    import reasoning_gym

    return {"reasoning_gym": reasoning_gym.create_dataset("chain_sum", size=1, seed=1)[0]}


def converse(record, *answers, **options):
    from archon_tasks.reasoning.environment import reasoning_environment

    environment = reasoning_environment(options, 1)
    first = environment.reset(record)
    return first, [environment.step({"role": "assistant", "content": answer}) for answer in answers]


def test_a_right_answer_ends_the_conversation(record):
    first, steps = converse(record, f"<answer>{record['reasoning_gym']['answer']}</answer>", instruction="Be brief.")
    assert first == [{"role": "user", "content": record["reasoning_gym"]["question"] + "\n\nBe brief."}]
    assert steps == [([], 1.0, True)]


def test_feedback_follows_wrong_answers_while_there_are_tries(record):
    right = record["reasoning_gym"]["answer"]
    assert converse(record, "no", right, tries=3)[1] == [(FEEDBACK, 0.0, False), ([], 1.0, True)]
    _, steps = converse(record, "no", "no", tries=2, feedback="Hm.")
    assert steps[0] == ([{"role": "user", "content": "Hm."}], 0.0, False)
    assert steps[1][0] == []
    assert steps[1][1] < 0.1
    assert steps[1][2] is True


def test_options_and_records_are_checked(record):
    with pytest.raises(ConfigError, match=r"environment\.options: found 'trys'.*did you mean 'tries'"):
        converse(record, trys=2)
    with pytest.raises(ConfigError, match=r"environment\.options\.tries: found 0; allowed are numbers of 1 or more"):
        converse(record, tries=0)
    with pytest.raises(ConfigError, match=r"environment\.options\.tries: found True; .* of type int, such as 1"):
        converse(record, tries=True)
    with pytest.raises(DataError, match="a record without the field 'reasoning_gym'"):
        converse({"question": "1+1"})
