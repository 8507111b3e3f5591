"""Starts Python programs by forking a process that has imported everything, with the interface of ``subprocess.Popen``.

A storm starts hundreds of programs, each of which would import torch for seconds. The server is a child with one thread
that dies with its owner, so whatever it has started sees the death of its parent, as after a real start.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

from weather.processes import die_with_parent

FIRST_FREE_DESCRIPTOR = 500

_MAIN = "import json, sys; sys.path[:] = json.loads(sys.argv[3]); from weather.fork_server import main; main()"


class ForkServer:
    """Starts programs for the process that creates it.

    Args:
        started: called with command and process id of every program.
        forked: whether this process, which has one thread, has imported everything; otherwise a new one does.
    """

    def __init__(self, started: Callable[[Sequence[str], int], None], *, forked: bool = True) -> None:
        self._started = started
        self._owner = os.getpid()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if not forked:
            with theirs:
                arguments = [str(theirs.fileno()), str(self._owner), json.dumps(sys.path)]
                subprocess.Popen([sys.executable, "-c", _MAIN, *arguments], pass_fds=[theirs.fileno()])
            return
        if os.fork() == 0:
            self._channel.close()
            try:
                die_with_parent()
                _serve(theirs, self._owner)
            finally:
                os._exit(0)
        theirs.close()

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes] | ForkedProcess:
        """``subprocess.Popen`` for programs of this Python that import torch; the real one for others."""
        program = _program(command)
        if program is None:
            return subprocess.Popen(command, **options)
        return ForkedProcess(self, program, command, **options)

    def start(self, program: Mapping[str, Any], command: Sequence[str], descriptors: Sequence[int]) -> int:
        """Start a program; returns its process id."""
        pid = self._ask({"start": program}, descriptors)
        self._started(command, pid)
        return pid

    def poll(self, pid: int) -> int | None:
        """The exit code of a program that has ended."""
        return self._ask({"poll": pid}, ())

    def _ask(self, question: Mapping[str, Any], descriptors: Sequence[int]) -> Any:
        socket.send_fds(self._channel, [json.dumps(question).encode()], list(descriptors))
        return json.loads(self._channel.recv(1 << 16))


class ForkedProcess:
    """The part of ``subprocess.Popen`` that the product uses."""

    def __init__(
        self,
        server: ForkServer,
        program: Mapping[str, Any],
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdout: Any,
        pass_fds: Sequence[int] = (),
        start_new_session: bool = False,
        process_group: int | None = None,
        **_: Any,
    ) -> None:
        self._server = server
        self.returncode: int | None = None
        asked = {
            **program,
            "environment": dict(os.environ if env is None else env),
            "descriptors": [1, *pass_fds],
            "session": start_new_session,
        }
        self.pid = server.start(asked, command, [stdout.fileno(), *pass_fds])

    def poll(self) -> int | None:
        """See ``subprocess.Popen``."""
        if self.returncode is None:
            self.returncode = self._server.poll(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """See ``subprocess.Popen``."""
        deadline = time.monotonic() + (1e9 if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired("a forked program", timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """See ``subprocess.Popen``."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _program(command: Sequence[str]) -> dict[str, Any] | None:
    """What to run; ``None`` for a program of another kind."""
    if command[0] != sys.executable:
        return None
    rest = [part for part in command[1:] if part != "-P"]
    if rest[0] == "-m":
        return {"module": rest[1], "arguments": [str(part) for part in rest[2:]]}
    if rest[0] == "-c" and "archon_rl.collector" in rest[1]:
        return {"code": rest[1], "arguments": [str(part) for part in rest[2:]]}
    return None


def main() -> None:
    """Import everything, and serve the owner; the arguments are its socket, its process id and the path."""
    die_with_parent()
    import archon_rollout.server.process  # noqa: F401

    _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))


def install(forks: ForkServer, *modules: ModuleType) -> None:
    """Let modules start their processes by forks."""
    for module in modules:
        popen = SimpleNamespace(**vars(module.subprocess))
        popen.Popen = forks.popen
        module.subprocess = popen


def _serve(channel: socket.socket, owner: int) -> None:
    codes: dict[int, int] = {}
    while True:
        content, descriptors, _, _ = socket.recv_fds(channel, 1 << 20, 16)
        if not content:
            return
        question = json.loads(content)
        if "start" in question:
            answer: Any = _fork(question["start"], descriptors, channel, owner)
        else:
            pid = question["poll"]
            with contextlib.suppress(ChildProcessError):
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            answer = codes.get(pid)
        channel.send(json.dumps(answer).encode())


def _fork(program: Mapping[str, Any], descriptors: Sequence[int], channel: socket.socket, owner: int) -> int:
    pid = os.fork()
    if pid:
        for descriptor in descriptors:
            os.close(descriptor)
        return pid
    code = 1
    try:
        code = _run(program, descriptors, channel, owner)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(program: Mapping[str, Any], descriptors: Sequence[int], channel: socket.socket, owner: int) -> int:
    """Run a program in this new process; returns its exit code."""
    channel.close()
    if program["session"]:
        os.setsid()
    else:
        os.setpgid(0, 0)
    moved = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_DESCRIPTOR) for one in descriptors]
    for one in descriptors:
        os.close(one)
    for source, target in zip(moved, program["descriptors"], strict=True):
        os.dup2(source, target)
        os.close(source)
    os.dup2(1, 2)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(program["environment"])
    server, real = os.getppid(), os.getppid
    os.getppid = lambda: owner if real() == server else real()  # this program believes that its owner started it
    try:
        if "module" in program:
            sys.argv = [program["module"], *program["arguments"]]
            runpy.run_module(program["module"], run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *program["arguments"]]
            exec(program["code"], {"__name__": "__main__"})
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
