"""``ToolProcess``: the trainer's side of a tool process. One that hangs or ends is replaced at the next call."""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from archon_core import errors
from archon_core.contracts.tool_calls import ToolCall
from archon_core.errors import ArchonError, ConfigError
from archon_rl.rewards.environment import reward_environment
from archon_rl.rewards.messages import TRAINERS_SIGNALS, Receiver, send
from archon_rl.rewards.process_group import ProcessGroup
from archon_rl.tools.calls import ToolResult, failure
from archon_rl.tools.source import ToolSource

START_SECONDS = 300.0
"""Time limit for starting Python and importing the tools with all that they need."""

_MAIN = (
    "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments.pop('path'); "
    "from archon_rl.tools.worker import main; main(**arguments)"
)
_SANDBOX_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")


class ToolProcess:
    """Calls tools in a process. Belongs to the thread that uses it, since the process ends with that thread.

    Args:
        tools: the tools that the process imports.
        timeout: time limit of a call in seconds.
        memory_mb: MiB that the calls of a sandbox may allocate; 0 for a process without limits.
        longest: characters of a result to keep.
    """

    def __init__(self, tools: Sequence[ToolSource], *, timeout: float, memory_mb: int = 0, longest: int = 2000) -> None:
        self._tools, self._timeout, self._memory_mb, self._longest = tools, timeout, memory_mb, longest
        self._channel: socket.socket | None = None
        self._group: ProcessGroup | None = None
        self._receiver: Receiver | None = None
        self._schemas: list[dict[str, Any]] = []

    def schemas(self) -> list[dict[str, Any]]:
        """The JSON schema of every tool, in order. Starts the process if there is none.

        Raises:
            ArchonError: a tool cannot be imported or described.
        """
        if self._channel is None:
            try:
                self._start()
            except BaseException:
                self.close()
                raise
        return self._schemas

    def call(self, call: ToolCall) -> ToolResult:
        """The result of a call; a failure if the process exceeds its time limit, or ends."""
        self.schemas()
        deadline = time.monotonic() + self._timeout
        try:
            self._send({"name": call.name, "arguments": dict(call.arguments)}, deadline)
            reply = self._reply(deadline)
        except TimeoutError:
            self.close()
            return failure(f"no result within {self._timeout:g} seconds")
        except (EOFError, OSError):
            self.close()
            return failure("the tool ended its process")
        except BaseException:
            self.close()
            raise
        return ToolResult(reply["text"], reply["failed"])

    def close(self) -> None:
        """Kill the process and its children. The next call starts another process. Idempotent."""
        if self._group is not None:
            self._group.kill()
        if self._channel is not None:
            self._channel.close()
        self._channel = self._group = self._receiver = None

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair()
        self._receiver = Receiver(self._channel)
        self._channel.setblocking(False)
        arguments = {
            "path": sys.path,
            "descriptor": theirs.fileno(),
            "trainer": os.getpid(),
            "tools": [asdict(tool) for tool in self._tools],
            "memory_mb": self._memory_mb,
            "seconds": self._timeout,
            "longest": self._longest,
        }
        try:
            self._group = ProcessGroup(
                [sys.executable, "-c", _MAIN, json.dumps(arguments)],
                held=TRAINERS_SIGNALS,
                descriptors=[theirs.fileno()],
                environment=self._environment(),
            )
        finally:
            theirs.close()
        names = ", ".join(tool.name for tool in self._tools)
        try:
            reply = self._reply(time.monotonic() + START_SECONDS)
        except (TimeoutError, EOFError) as error:
            how = f"gave no answer within {START_SECONDS:g} s" if isinstance(error, TimeoutError) else "ended"
            raise ConfigError(
                f"tools.names: the process that imports {names} {how}; import the modules yourself, and correct what "
                "hangs or ends the process"
            ) from error
        if "error" in reply:
            kind = getattr(errors, reply["error"], ConfigError)
            raise kind(reply["text"]) if issubclass(kind, ArchonError) else ConfigError(reply["text"])
        self._schemas = reply["schemas"]

    def _environment(self) -> Mapping[str, str]:
        if not self._memory_mb:
            return reward_environment(os.environ)
        return {name: os.environ[name] for name in _SANDBOX_VARIABLES if name in os.environ}

    def _send(self, message: Mapping[str, Any], deadline: float) -> None:
        assert self._channel is not None
        self._channel.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            send(self._channel, json.dumps(message).encode())
        finally:
            self._channel.setblocking(False)

    def _reply(self, deadline: float) -> dict[str, Any]:
        assert self._channel is not None
        assert self._receiver is not None
        while True:
            messages, is_open = self._receiver.arrived()
            if messages:
                reply: dict[str, Any] = json.loads(messages[0])
                return reply
            if not is_open:
                raise EOFError
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            select.select([self._channel], [], [], left)
