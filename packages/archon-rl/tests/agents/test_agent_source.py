"""Which agents the option ``agent_cls_path`` may name, what they get, and what they may return."""

import asyncio
import sys

import pytest

from archon_core.errors import ConfigError
from archon_rl.agents.errors import SessionError
from archon_rl.agents.options import AgentOptions
from archon_rl.agents.session_parts import agent_source
from archon_rl.agents.source import AgentCaller

MODULE = """
import asyncio

class Agent:
    def __init__(self, bonus=0.0):
        self.bonus = bonus

    async def run(self, data, **extra_kwargs):
        assert set(extra_kwargs) == {"base_url", "api_key", "http_client"}
        return data["reward"] if "reward" in data else self.bonus


class Sync:
    def run(self, data):
        return 1.0


async def function(data, api_key):
    return {"an-id": 1, "another": len(api_key)}


async def fails(data):
    return 1 / 0


async def cancels(data):
    waiting = asyncio.create_task(asyncio.sleep(60))
    waiting.cancel()
    await waiting


def no_coroutine(data):
    return 1.0


from os import system
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    (folder / "my_agents.py").write_text(MODULE, encoding="utf-8")
    (folder / "broken.py").write_text("1 / 0\nclass Agent: ...\n", encoding="utf-8")
    yield folder
    sys.modules.pop("my_agents", None)
    sys.path.remove(str(folder))


@pytest.fixture(autouse=True)
def folder(modules, monkeypatch):
    monkeypatch.chdir(modules)


def call(path, record=(), **arguments):
    caller = AgentCaller(agent_source(AgentOptions(agent_cls_path=path)).build(arguments))
    return asyncio.run(caller.call(dict(record), base_url="http://127.0.0.1:1/v1", api_key="key"))


def test_classes_and_functions_get_what_they_take():
    assert call("my_agents:Agent", bonus=0.5) == 0.5
    assert call("my_agents.Agent", {"reward": None}) is None
    assert call("my_agents:function") == {"an-id": 1.0, "another": 3.0}


@pytest.mark.parametrize("reward", ["good", float("nan"), [1.0], {"an-id": "good"}])
def test_other_values_are_no_rewards(reward):
    with pytest.raises(SessionError, match=r"the agent returned .*; allowed are a finite number"):
        call("my_agents:Agent", {"reward": reward})


def test_an_exception_is_named_with_its_line():
    with pytest.raises(SessionError, match=r"the agent raised ZeroDivisionError: .* \(my_agents.py:23 in fails\)"):
        call("my_agents:fails")


def test_an_agent_that_awaits_a_task_it_has_cancelled_fails():
    with pytest.raises(SessionError, match=r"the agent raised CancelledError \(my_agents.py:29 in cancels\)"):
        call("my_agents:cancels")


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("my_agents:no_coroutine", {}, "found no coroutine function in my_agents:no_coroutine; allowed is a class"),
        ("my_agents:Sync", {}, "found no coroutine function in my_agents:Sync"),
        ("my_agents:function", {"bonus": 1}, "only classes take them"),
        ("my_agents:Agent", {"malus": 1}, r"Agent\(malus\) raised TypeError"),
        ("my_agents:Agents", {}, r"found no 'Agents' in .*; it defines Agent, Sync, function, fails, cancels, no_"),
        ("my_agents:system", {}, "found a function of the module"),
        ("other.agents.Agent", {}, r"found no other/agents.py in"),
        ("broken:Agent", {}, r"importing 'broken' .* raised ZeroDivisionError"),
    ],
)
def test_what_is_no_agent_is_refused(path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        call(path, **arguments)
