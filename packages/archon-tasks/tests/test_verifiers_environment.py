"""``verifiers``: conversations, rewards and data of its environments, with the package itself where it is installed."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from archon_core.errors import ConfigError, DataError
from archon_tasks.config import VerifiersOptions
from archon_tasks.environments import verifiers_loading
from archon_tasks.environments.verifiers_adapter import VerifiersError, verifiers_environment
from archon_tasks.environments.verifiers_dataset import verifiers_dataset

pytest.importorskip("datasets", reason="the environments of verifiers need datasets")
sys.path.insert(0, str(Path(__file__).parent))

import verifiers_shape

INSTALLED = importlib.util.find_spec("verifiers") is not None
REASON = "verifiers is not installed: pip install 'archon-tasks[verifiers]'"


@pytest.fixture(params=["shape", pytest.param("verifiers", marks=pytest.mark.skipif(not INSTALLED, reason=REASON))])
def _verifiers(request, monkeypatch):
    if request.param == "shape":
        for name, module in verifiers_shape.as_modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "vf_guessing", raising=False)
    verifiers_loading._load.cache_clear()
    yield
    verifiers_loading._load.cache_clear()


def options(**arguments):
    return {"environment": "vf-guessing", "arguments": arguments}


def records(split="train", *, validation_size=2, **arguments):
    chosen = VerifiersOptions("vf-guessing", arguments)
    config = SimpleNamespace(
        verifiers=chosen, validation_size=validation_size, prompt_key="question", answer_key="answer"
    )
    return verifiers_dataset(config, split=split, seed=1)


def converse(*answers, record=None, **arguments):
    """The events of a conversation: messages of the environment, then (messages, reward, done) of every step."""

    async def run():
        environment = verifiers_environment(options(**arguments), 3)
        try:
            events = [await environment.reset(record or records()[0])]
            for answer in answers:
                message = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}
                events.append(await environment.step(message))
            return events, environment
        finally:
            await environment.close()

    return asyncio.run(run())


@pytest.mark.usefixtures("_verifiers")
class TestVerifiers:
    def test_the_environment_answers_until_it_is_done_and_its_rubric_gives_the_reward(self):
        events, environment = converse("9", "1", "5")
        assert events == [
            [{"role": "system", "content": "Guess."}, {"role": "user", "content": "Which digit?"}],
            ([{"role": "user", "content": "less"}], 0.0, False),
            ([{"role": "user", "content": "more"}], 0.0, False),
            ([], 1.0, True),
        ]
        assert environment.metrics() == {"found_it": 1.0, "num_turns": 3.0}

    def test_it_keeps_its_own_limit_of_turns(self):
        events, _ = converse("9", "9", "9")
        assert events[-1] == ([], 0.0, True)

    def test_tools_and_their_results_pass_through(self):
        call = {"id": "call_0", "type": "function", "function": {"name": "double", "arguments": '{"a": 2}'}}
        events, environment = converse({"role": "assistant", "content": "", "tool_calls": [call]}, "5", kind="tools")
        assert environment.tools[0]["function"]["name"] == "double"
        assert environment.tools[0]["function"]["parameters"]["properties"]["a"]["type"] == "integer"
        assert events[1] == ([{"role": "tool", "tool_call_id": "call_0", "content": "4"}], 0.0, False)
        assert events[2] == ([], 1.0, True)

    def test_a_conversation_may_end_early(self):
        events, environment = converse("9")
        assert events[-1][2] is False
        assert environment._rollout.cancelled()

    def test_an_environment_that_changes_the_conversation_is_refused(self):
        with pytest.raises(VerifiersError, match="it changed earlier messages"):
            converse("rewrite")

    def test_an_environment_that_compares_samples_is_refused(self):
        with pytest.raises(ConfigError, match="whose rubric compares the samples of a group"):
            verifiers_environment(options(kind="compared"), 1)

    def test_an_environment_that_cannot_be_loaded_is_an_error(self):
        with pytest.raises(ConfigError, match=r"verifiers cannot load 'vf-guessing': .*no environment other"):
            verifiers_environment(options(kind="other"), 1)
        with pytest.raises(ConfigError, match="found none; name an installed environment"):
            verifiers_environment({}, 1)

    def test_rows_are_records(self):
        train, validation = records(), records("validation")
        assert (len(train), len(validation)) == (4, 2)
        assert train[1]["answer"] == "6"
        assert train[1]["question"][1] == {"role": "user", "content": "Which digit?"}
        assert (train[1]["verifiers"]["info"]["id"], validation[1]["verifiers"]["info"]["id"]) == ("t1", "e1")
        assert train.where(1) == "row 1 of the environment 'vf-guessing'"

    def test_training_rows_are_never_held_out(self):
        assert len(records("validation", validation_size=0, evaluation=0)) == 0
        with pytest.raises(ConfigError, match="found 3; the environment 'vf-guessing' has 2 evaluation rows"):
            records("validation", validation_size=3)
        with pytest.raises(ConfigError, match="has 0 evaluation rows"):
            records("validation", evaluation=0)

    def test_records_of_other_data_are_refused(self):
        with pytest.raises(DataError, match=r"a record without the field 'verifiers'; set data\.dataset"):
            converse(record={"question": "?"})


@pytest.mark.parametrize(
    ("version", "problem"), [(None, "verifiers is not installed; pip install"), ("0.4.0", "found verifiers 0.4.0")]
)
def test_a_missing_or_newer_verifiers_is_an_error_that_says_what_to_install(monkeypatch, version, problem):
    verifiers_loading._load.cache_clear()
    newer = SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, "verifiers", newer if version else None)
    with pytest.raises(ConfigError, match=problem):
        verifiers_environment({"environment": "any"}, 1)
    verifiers_loading._load.cache_clear()
