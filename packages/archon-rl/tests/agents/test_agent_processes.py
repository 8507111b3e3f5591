"""Agents in processes: the OpenAI library there, exceptions, ends of processes, time limits, and bad modules."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from agent_workflows import workflow_of

from archon_core.errors import ConfigError
from archon_rl.agents.errors import SessionError
from archon_rl.agents.options import AgentOptions
from archon_rl.agents.processes import ProcessAgents
from archon_rl.agents.session_parts import agent_source

MODULE = '''
import asyncio, json, os, signal, time, urllib.request


def ask(base_url, api_key, text):
    """OpenAI's protocol without its library: tests of processes need none."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
    headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{base_url}/chat/completions", body, headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


class Agent:
    def __init__(self, bonus=0.0):
        self.bonus = bonus

    async def run(self, data, **extra_kwargs):
        if "notes" in data:
            open(f"{data['notes']}/{os.getpid()}", "w").close()
        await asyncio.sleep(data.get("sleep", 0))
        if data.get("hangs"):
            time.sleep(60)
        if data.get("ends") == "exit":
            os._exit(3)
        if data.get("ends") == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if data.get("raises"):
            raise ValueError("no such tool")
        assert os.environ["OPENAI_BASE_URL"] == extra_kwargs["base_url"]
        assert os.environ["OPENAI_API_KEY"] == extra_kwargs["api_key"]
        assert "ARCHON_SERVER_TOKEN" not in os.environ
        text = await asyncio.to_thread(ask, extra_kwargs["base_url"], extra_kwargs["api_key"], data["question"])
        return (1.0 if text == "4" else 0.0) + self.bonus + os.getpid() * data.get("shows_process", 0)
'''
RECORD = {"question": "2+2="}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "my_agents.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARCHON_SERVER_TOKEN", "secret")
    yield tmp_path
    sys.modules.pop("my_agents", None)


def agents_of(name="Agent", processes=2, **arguments):
    return ProcessAgents(agent_source(AgentOptions(agent_cls_path=f"my_agents:{name}")), arguments, processes)


async def rewards(workflow, client, *seeds, **fields):
    client.answer = lambda prompt: "4"
    return [one.reward for one in await workflow.run(client, RECORD | fields, seeds or (1,))]


def run(test, name="Agent", processes=2, arguments=(), **options):
    async def body():
        agents = agents_of(name, processes, **dict(arguments))
        async with workflow_of(agents, mode="subproc", **options) as (workflow, client):
            return await test(workflow, client)

    return asyncio.run(body())


def test_agents_run_in_processes_and_replace_those_that_fail(folder):
    async def test(workflow, client):
        assert await rewards(workflow, client, 1, 2, 3) == [1.5] * 3
        for fields, message in (
            ({"ends": "killed"}, "the agent's process ended: SIGKILL killed it"),
            ({"ends": "exit"}, "the agent's process ended: it called exit with code 3"),
            ({"raises": True}, r"the agent raised ValueError: no such tool \(my_agents.py:\d+ in run\)"),
            ({"question": object()}, "cannot send the record to the agent's process"),
        ):
            with pytest.raises(SessionError, match=message):
                await rewards(workflow, client, **fields)
        [first] = await rewards(workflow, client, shows_process=1)
        [second] = await rewards(workflow, client, shows_process=1)
        assert first == second  # a process runs one session after another
        assert first - 1.5 != os.getpid()

    run(test, arguments={"bonus": 0.5})


def test_a_session_that_exceeds_its_time_takes_its_process_with_it(folder):
    async def test(workflow, client):
        [before] = await rewards(workflow, client, shows_process=1)
        with pytest.raises(SessionError, match=r"no end within 0.5 s \(rollout.agent.session_timeout_seconds\)"):
            await rewards(workflow, client, hangs=True)
        assert not Path(f"/proc/{before - 1:.0f}").exists()
        assert await rewards(workflow, client) == [1.0]

    run(test, processes=1, session_timeout_seconds=0.5)


def test_a_failing_sample_ends_the_other_sessions_of_its_group(folder):
    async def test(workflow, client):
        (folder / "started").mkdir()
        group = asyncio.ensure_future(rewards(workflow, client, 1, 2, sleep=600, notes=str(folder / "started")))
        while len(processes := [int(file.name) for file in (folder / "started").iterdir()]) < 2:
            await asyncio.sleep(0.02)
        os.kill(processes[0], signal.SIGKILL)
        with pytest.raises(SessionError, match="SIGKILL killed it"):
            await group
        assert not any(Path(f"/proc/{pid}").exists() for pid in processes)
        assert await rewards(workflow, client) == [1.0]

    run(test)


def test_an_agent_that_ends_its_process_while_it_is_imported_ends_the_run(folder):
    (folder / "ends.py").write_text("import os\nos._exit(5)\nclass Agent: ...\n", encoding="utf-8")

    async def start():
        agents = ProcessAgents(agent_source(AgentOptions(agent_cls_path="ends:Agent")), {}, 1)
        await agents.run(RECORD, {"base_url": "http://127.0.0.1:1", "api_key": ""}, 60)

    with pytest.raises(ConfigError, match="could not import it: it called exit with code 5"):
        asyncio.run(start())
