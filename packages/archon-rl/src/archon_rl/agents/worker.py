"""A process for agents: imports the agent, then runs one session after another.

Records come as msgpack and rewards go back as msgpack, so nothing is pickled. The process ends with the collector.
"""

from __future__ import annotations

import asyncio
import os
import socket
import traceback
from collections.abc import Mapping
from typing import Any

from archon_core.errors import ArchonError
from archon_rl.agents.errors import SessionError
from archon_rl.agents.source import AgentCaller, AgentSource
from archon_rl.collector.messages import error_data, packed, receive
from archon_rl.parent import end_with
from archon_rl.rewards.trainers_signals import leave_signals_to_trainer

FAILED = "failed"
"""Field of an answer with the reason why a session has no reward."""


def main(descriptor: int, parent: int, source: dict[str, str], arguments: dict[str, Any]) -> None:
    """Run sessions until the collector closes its end of the socket.

    Args:
        descriptor: file descriptor of the socket.
        parent: process id of the collector.
        source: fields of the ``AgentSource``.
        arguments: keyword arguments of the agent's class.
    """
    end_with(parent)
    leave_signals_to_trainer()
    os.set_inheritable(descriptor, False)  # processes of the agent must not keep the socket open
    channel = socket.socket(fileno=descriptor)
    try:
        run = AgentSource(**source).build(arguments)
    except ArchonError as error:
        channel.sendall(packed(error_data(error)))
        return
    channel.sendall(packed({"ok": None}))
    caller = AgentCaller(run)
    with asyncio.Runner() as runner:
        while True:
            try:
                session = receive(channel)
            except EOFError:
                return
            channel.sendall(packed(runner.run(_answer(caller, session))))


async def _answer(caller: AgentCaller, session: Mapping[str, Any]) -> dict[str, Any]:
    record, connection = session["record"], session["connection"]
    # Clients of OpenAI that are built without arguments read these.
    os.environ |= {"OPENAI_BASE_URL": connection["base_url"], "OPENAI_API_KEY": connection["api_key"]}
    before = asyncio.all_tasks()
    try:
        return {"ok": await caller.call(record, **connection)}
    except SessionError as error:
        traceback.print_exception(error)
        return {FAILED: str(error)}
    finally:
        for task in asyncio.all_tasks() - before:  # nothing of a session lives on in the next one
            task.cancel()
