"""A tool process: imports tools, then answers one call after another. Messages are JSON.

In a sandbox process the kernel limits memory, files and processes as well, so that an expression which outwits the
evaluator could neither open a file nor a connection. The trainer kills a process that exceeds its time limit.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import socket
import sys
import warnings
from typing import Any

from archon_core.errors import ArchonError
from archon_rl.parent import end_with
from archon_rl.rewards.messages import Receiver, send
from archon_rl.rewards.trainers_signals import leave_signals_to_trainer
from archon_rl.tools.calls import call_tool
from archon_rl.tools.schema import tool_schema
from archon_rl.tools.source import ToolSource


def main(
    descriptor: int, trainer: int, tools: list[dict[str, str]], memory_mb: int, seconds: float, longest: int
) -> None:
    """Serve calls until the trainer closes its end of the socket.

    Args:
        descriptor: file descriptor of the socket.
        trainer: process id of the trainer.
        tools: fields of each ``ToolSource``.
        memory_mb: MiB that calls may allocate, for a sandbox; 0 for no limits.
        seconds: time limit of a call.
        longest: characters of a result to keep.
    """
    end_with(trainer)
    leave_signals_to_trainer()
    os.set_inheritable(descriptor, False)
    channel = socket.socket(fileno=descriptor)
    receiver = Receiver(channel)
    with contextlib.suppress(BrokenPipeError):  # the trainer no longer wants the answers
        try:
            functions = {source.name: source.load() for source in (ToolSource(**tool) for tool in tools)}
            schemas = [tool_schema(name, function) for name, function in functions.items()]
        except ArchonError as error:
            _reply(channel, {"error": type(error).__name__, "text": str(error)})
            return
        if memory_mb:
            _enter_sandbox(memory_mb)
        _reply(channel, {"schemas": schemas})
        own = os.getpid()
        while (message := receiver.wait()) is not None:
            call = json.loads(message)
            if memory_mb:
                _limit_processor_time(seconds)
            with contextlib.redirect_stdout(sys.stderr):
                result = call_tool(functions[call["name"]], call["arguments"], longest=longest)
            if os.getpid() != own:  # the tool forked, and this is the child, which shares the socket
                os._exit(1)
            _reply(channel, {"text": result.text, "failed": result.failed})


def _enter_sandbox(memory_mb: int) -> None:
    """Set limits for the rest of the process's life.

    A process of root is not bound by the number of processes; its children end with its group.
    """
    warnings.simplefilter("ignore")  # showing one would open a file
    used = 0
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="utf-8") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: used + memory_mb * 2**20,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: 0,  # descriptors that are open stay open
    }
    for which, limit in limits.items():
        try:
            resource.setrlimit(which, (limit, limit))
        except (ValueError, OSError):
            if sys.platform == "linux":
                raise


def _limit_processor_time(seconds: float) -> None:
    """Let the kernel end the process after so many further seconds of computing, in case nobody else does."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    limit = math.ceil(usage.ru_utime + usage.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def _reply(channel: socket.socket, reply: dict[str, Any]) -> None:
    send(channel, json.dumps(reply).encode())
