"""Agents outside of the run: they start sessions with the admin key, and end them with a reward."""

import asyncio
import json
import stat

import pytest
from agent_workflows import workflow_of

from archon_rl.agents.errors import SessionError

RECORD = {"question": "2+2=", "answer": "4"}


class Outside:
    """Calls the collector over HTTP, as a program elsewhere would."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key

    async def post(self, path: str, body=None, key: str | None = None) -> tuple[int, dict]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        content = json.dumps(body or {}).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {key or self.key}\r\n"
            f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + content)
        answer = await reader.read()
        writer.close()
        header, _, data = answer.partition(b"\r\n\r\n")
        return int(header.split()[1]), json.loads(data)

    async def start(self, **body) -> dict:
        status, session = await self.post("/rl/start_session", body)
        assert status == 200, session
        return session

    async def ask(self, session: dict, text: str = "2+2=") -> str:
        path = session["base_url"].removeprefix(self.url)
        body = {"messages": [{"role": "user", "content": text}]}
        status, answer = await self.post(f"{path}/chat/completions", body, session["api_key"])
        assert status == 200, answer
        return answer["id"]

    async def reward(self, session: dict, reward: float, **fields) -> None:
        body = {"reward": reward, **fields}
        status, answer = await self.post("/rl/set_reward", body, session["api_key"])
        assert status == 200, answer


def run(tmp_path, outside, *, seeds=(1, 2), **options):
    """The trajectories of one record, while ``outside(client)`` runs."""

    async def body():
        async with workflow_of(folder=tmp_path, **options) as (workflow, client):
            group = asyncio.ensure_future(workflow.run(client, RECORD, seeds))
            while not (tmp_path / "agents.json").exists():
                await asyncio.sleep(0.005)
            found = json.loads((tmp_path / "agents.json").read_text())
            agent = asyncio.ensure_future(outside(Outside(found["url"], found["admin_api_key"])))
            trajectories = await group
            await agent
            return trajectories

    return asyncio.run(body())


def test_sessions_start_with_the_admin_key_and_end_with_a_reward(tmp_path):
    async def outside(client):
        first = await client.start()
        assert first["data"] == RECORD
        second = await client.start()
        status, answer = await client.post("/rl/start_session")
        assert (status, answer["error"]["code"]) == (429, "no_waiting_sample")
        status, answer = await client.post("/rl/start_session", key="another")
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        for session, reward in ((first, 1.0), (second, 0.0)):
            await client.ask(session)
            await client.reward(session, reward)
            status, _ = await client.post("/rl/set_reward", {"reward": 1.0}, session["api_key"])
            assert status in (401, 403)

    assert [one.reward for one in run(tmp_path, outside)] == [1.0, 0.0]
    assert stat.S_IMODE((tmp_path / "agents.json").stat().st_mode) == 0o600


def test_a_finish_timeout_lets_an_agent_correct_its_reward(tmp_path):
    async def outside(client):
        session = await client.start()
        await client.ask(session)
        await client.reward(session, 0.0)
        second = await client.ask(session, "again")
        await client.reward(session, 0.5, interaction_id=second)
        await client.reward(session, 1.0)

    trajectories = run(tmp_path, outside, seeds=(1,), set_reward_finish_timeout=0.3, turn_discount=0.0)
    assert [one.reward for one in trajectories] == [0.0, 1.0]


def test_rewards_of_single_answers_do_not_end_a_session(tmp_path):
    async def outside(client):
        session = await client.start()
        await client.reward(session, 3.0, interaction_id=await client.ask(session))
        await client.ask(session, "more")
        status, _ = await client.post("/rl/end_session", key=session["api_key"])
        assert status == 200

    trajectories = run(tmp_path, outside, seeds=(1,), turn_discount=0.5)
    assert [one.reward for one in trajectories] == [3.0, 0.0]


def test_sessions_of_one_task_belong_to_one_group(tmp_path):
    async def body():
        async with workflow_of(folder=tmp_path, admin_api_key="admin") as (workflow, client):
            groups = [asyncio.ensure_future(workflow.run(client, {"question": n}, (1, 2))) for n in "ab"]
            while not (tmp_path / "agents.json").exists():
                await asyncio.sleep(0.005)
            outside = Outside(json.loads((tmp_path / "agents.json").read_text())["url"], "admin")
            for task in ("x", "y", "y", "x"):
                session = await outside.start(task_id=task)
                assert session["data"] == {"question": "a" if task == "x" else "b"}
                await outside.ask(session)
                await outside.reward(session, 1.0 if task == "x" else 0.0)
            return [[one.reward for one in await group] for group in groups]

    assert asyncio.run(body()) == [[1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("ends", "message"),
    [(False, "no end within 0.2 s"), (True, "the session ended without a reward")],
)
def test_a_session_without_a_reward_drops_its_group(tmp_path, ends, message):
    async def outside(client):
        session = await client.start()
        await client.ask(session)
        if ends:
            await client.post("/rl/end_session", key=session["api_key"])
            other = await client.start()
            await client.ask(other)
            await client.reward(other, 1.0)

    with pytest.raises(SessionError, match=message):
        run(tmp_path, outside, session_timeout_seconds=60.0 if ends else 0.2)
