"""``openenv``: sessions with a server, the real one where openenv-core is installed."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from archon_core.errors import ConfigError, DataError
from archon_tasks.environments.openenv_adapter import openenv_environment

INSTALLED = importlib.util.find_spec("openenv") is not None
REASON = "openenv-core is not installed: pip install 'archon-tasks[openenv]'"


class _Client:
    """``GenericEnvClient`` over the environment of ``openenv_server``, without a server."""

    def __init__(self, base_url):
        self.answer, self.is_open = None, False

    async def connect(self):
        self.is_open = True

    async def reset(self, seed, answer="5"):
        assert self.is_open
        self.answer = answer
        return self._result(f"Which digit? ({seed})")

    async def step(self, action):
        (guess,) = action.values()
        done = guess == self.answer
        return self._result("less" if guess > self.answer else "more", 1.0 if done else None, done)

    async def close(self):
        self.is_open = False

    def _result(self, hint, reward=None, done=False):
        return SimpleNamespace(observation={"hint": hint}, reward=reward, done=done)


@pytest.fixture(scope="module")
def server():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("openenv_server.py")), str(port)])
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["shape", pytest.param("openenv", marks=pytest.mark.skipif(not INSTALLED, reason=REASON))])
def url(request, monkeypatch):
    if request.param == "openenv":
        return request.getfixturevalue("server")
    for name in ("openenv", "openenv.core"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["openenv.core"].GenericEnvClient = _Client
    return "http://127.0.0.1:1"


def converse(url, *answers, record=None, seed=3, **options):
    async def run():
        environment = openenv_environment({"url": url, "observation_field": "hint", **options}, seed)
        try:
            events = [await environment.reset(record or {"question": "?"})]
            for answer in answers:
                events.append(await environment.step({"role": "assistant", "content": answer}))
            return events
        finally:
            await environment.close()

    return asyncio.run(run())


def test_observations_become_messages_and_texts_actions(url):
    assert converse(url, "9", "5", instruction="Guess.") == [
        [{"role": "user", "content": "Guess.\n\nWhich digit? (3)"}],
        ([{"role": "user", "content": "less"}], 0.0, False),
        ([{"role": "user", "content": "more"}], 1.0, True),
    ]


def test_a_record_may_have_arguments_of_the_environment(url):
    events = converse(url, "7", record={"openenv": {"answer": "7"}})
    assert events[1][1:] == (1.0, True)


def test_seeds_are_those_of_the_sample_within_31_bits(url):
    assert converse(url, seed=2**31 + 4)[0][0]["content"] == "Which digit? (4)"


def test_the_whole_observation_is_json(url):
    content = converse(url, observation_field="")[0][0]["content"]
    assert '"hint": "Which digit? (3)"' in content


def test_a_missing_field_of_the_observation_is_an_error(url):
    with pytest.raises(DataError, match="found 'text', and an observation with the fields"):
        converse(url, observation_field="text")


def test_options_are_checked(url):
    with pytest.raises(ConfigError, match=r"environment\.options\.url: found none; name the server"):
        openenv_environment({}, 1)
    with pytest.raises(ConfigError, match="found 'adress' for the environment 'openenv'; allowed are url"):
        openenv_environment({"adress": url}, 1)
    with pytest.raises(ConfigError, match=r"environment\.options\.action: found 'x'; .* of type dict"):
        openenv_environment({"url": url, "action": "x"}, 1)


def test_a_missing_package_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openenv.core", None)
    monkeypatch.setitem(sys.modules, "openenv", None)
    with pytest.raises(ConfigError, match=r"openenv-core is not installed; pip install 'archon-tasks\[openenv\]'"):
        openenv_environment({"url": "http://localhost:1"}, 1)
