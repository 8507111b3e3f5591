"""Processes for agents (``rollout.agent.mode: subproc``). A session that is cancelled, such as by its time limit, takes
its process with it, whatever the agent does; so does an agent that ends its process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import msgpack

from archon_core.errors import ConfigError
from archon_rl.agents.errors import SessionError
from archon_rl.agents.source import AgentSource, Rewards
from archon_rl.agents.worker import FAILED
from archon_rl.collector.messages import packed, receive_async, value_of
from archon_rl.rewards.environment import reward_environment
from archon_rl.rewards.messages import TRAINERS_SIGNALS
from archon_rl.rewards.process_group import ProcessGroup

START_SECONDS = 300.0
"""Time limit for starting Python and importing the agent."""

_MAIN = (
    "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments.pop('path'); "
    "from archon_rl.agents.worker import main; main(**arguments)"
)


class ProcessAgents:
    """Runs agents in processes. Belongs to one event loop, in the thread that starts it.

    Args:
        source: the agent.
        arguments: keyword arguments of its class.
        processes: largest number of processes.
    """

    def __init__(self, source: AgentSource, arguments: Mapping[str, Any], processes: int) -> None:
        self._source, self._arguments = source, arguments
        self._places = asyncio.Semaphore(processes)
        self._idle: list[_AgentProcess] = []
        self._was_imported = False

    async def run(self, record: Mapping[str, Any], connection: Mapping[str, Any], seconds: float) -> Rewards:
        """Run one session in a free process; returns its rewards.

        Args:
            seconds: time limit of the agent, without the time until a process is free.

        Raises:
            SessionError: the agent failed, or ended its process.
            TimeoutError: it exceeded its time limit.
            ConfigError: the agent cannot be imported.
        """
        try:
            message = packed({"record": dict(record), "connection": dict(connection)})
        except (TypeError, ValueError, OverflowError, msgpack.PackException) as error:
            raise SessionError(
                f"cannot send the record to the agent's process ({error}); leave out the field, or set "
                "rollout.agent.mode=inline"
            ) from error
        async with self._places:
            process = self._idle.pop() if self._idle else await self._start()
            try:
                async with asyncio.timeout(seconds):
                    answer = await process.call(message)
            except EOFError:
                raise SessionError(f"the agent's process ended: {process.kill()}") from None
            except BaseException:
                process.kill()
                raise
            self._idle.append(process)
        if FAILED in answer:
            raise SessionError(answer[FAILED])
        return value_of(answer)

    async def close(self) -> None:
        """End the idle processes."""
        while self._idle:
            self._idle.pop().kill()

    async def _start(self) -> _AgentProcess:
        process = _AgentProcess(self._source, self._arguments)
        try:
            async with asyncio.timeout(START_SECONDS):
                await process.wait_until_ready()
        except (EOFError, TimeoutError) as error:
            how = process.kill()
            if isinstance(error, TimeoutError):
                how = f"it was not ready within {START_SECONDS:g} s"
            if self._was_imported:
                raise SessionError(f"the agent's process ended while it started: {how}") from error
            raise ConfigError(
                f"{self._source}: the agent's process could not import it: {how}; import the module yourself, and "
                "correct what hangs or ends the process"
            ) from error
        except BaseException:
            process.kill()
            raise
        self._was_imported = True
        return process


class _AgentProcess:
    def __init__(self, source: AgentSource, arguments: Mapping[str, Any]) -> None:
        self._channel, theirs = socket.socketpair()
        described = {
            "path": sys.path,
            "descriptor": theirs.fileno(),
            "parent": os.getpid(),
            "source": asdict(source),
            "arguments": dict(arguments),
        }
        with theirs:
            self._group = ProcessGroup(
                [sys.executable, "-c", _MAIN, json.dumps(described)],
                held=TRAINERS_SIGNALS,
                descriptors=[theirs.fileno()],
                environment=reward_environment(os.environ),
            )
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def wait_until_ready(self) -> None:
        """Wait for the import. Raises its ArchonError; EOFError if the process ended."""
        self._streams = await asyncio.open_connection(sock=self._channel)
        value_of(await receive_async(self._streams[0]))

    async def call(self, message: bytes) -> dict[str, Any]:
        """The answer to a message. Raises EOFError if the process ended."""
        assert self._streams is not None
        reader, writer = self._streams
        try:
            writer.write(message)
            await writer.drain()
        except ConnectionError as error:
            raise EOFError from error
        return await receive_async(reader)

    def kill(self) -> str:
        """End the process and the processes that it started; returns how it had ended. Idempotent."""
        self._group.wait(1.0 if self._streams and self._streams[0].at_eof() else 0.0)
        code = self._group.kill()
        if self._streams is not None:
            self._streams[1].close()
        else:
            self._channel.close()
        if code is None:
            return "it closed its connection to the collector"
        return f"{_signal_name(-code)} killed it" if code < 0 else f"it called exit with code {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
