"""Starts Python programs by forking a process that has imported everything, with the interface of ``subprocess.Popen``.

Tests start hundreds of ranks and servers, each of which would import torch for seconds. A fork server has one thread,
and is a fork of its owner or, by address, of a ``SharedForkServer``. It ends when its owner ends or closes the channel,
so whatever it has started sees the death of its parent, as after a real start.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

from archon_testing.forked_program import die_with_parent, serve

PRELOADED = (
    "torch._dynamo",
    "transformers.modeling_utils",
    "archon_core.cli.main",
    "archon_engine.engine",
    "archon_engine.distributed.process_group",
    "archon_train.areal",
    "archon_train.cli.train",
    "archon_train.launch.local",
    "archon_rl.trainer.sampling_ahead",
    "archon_rollout.served.launching",
    "archon_rollout.server.process",
    "archon_testing.preloaded_plugins",
)
"""Modules that the programs of Archon import; missing modules are skipped."""

STARTERS = ("archon_train.launch.local", "archon_rl.trainer.collector_link", "archon_rollout.served.launching")
"""Modules that start ranks, collectors and servers by ``subprocess.Popen``."""

ERRORS = "stderr"
"""File beside the socket of a ``SharedForkServer``: stderr of that server and its fork servers."""

LAST_CHARACTERS = 4000
"""Number of characters of that file to show in an error."""


class ForkServerEndedError(RuntimeError):
    """A fork server has ended before its owner; the message has the end of its stderr."""


class ForkServer:
    """Starts programs for the process that creates it, their owner.

    Args:
        started: called with command and process id of every program.
        address: of a ``SharedForkServer``; without one, programs are forks of this process, which has one thread and
            has imported everything.
        nested: whether programs start ranks, collectors and servers as forks, too.

    Raises:
        ForkServerEndedError: also when a program is started or polled. A ``SharedForkServer`` ends if a module raises
            an error while it is imported.
    """

    def __init__(
        self,
        started: Callable[[Sequence[str], int], None] = lambda command, pid: None,
        *,
        address: str | None = None,
        nested: bool = False,
    ) -> None:
        self._started = started
        self._asking = threading.Lock()
        self._errors = None if address is None else Path(address).with_name(ERRORS)
        if address is not None:
            self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                self._channel.connect(address)
                self._channel.send(json.dumps({"owner": os.getpid(), "nested": nested}).encode())
            except ConnectionError as error:
                self._channel.close()
                raise self._ended() from error
            return
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        owner = os.getpid()
        if os.fork() == 0:
            self._channel.close()
            serve_owner(theirs, owner, nested=nested)
        theirs.close()

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes] | ForkedProcess:
        """``subprocess.Popen`` for programs of Archon; the real one for others."""
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

    def close(self) -> None:
        """End the server; programs that still run lose their parent."""
        self._channel.close()

    def _ask(self, question: Mapping[str, Any], descriptors: Sequence[int]) -> Any:
        with self._asking:
            try:
                socket.send_fds(self._channel, [json.dumps(question).encode()], list(descriptors))
                answer = self._channel.recv(1 << 16)
            except ConnectionError as error:
                raise self._ended() from error
        if not answer:
            raise self._ended()
        return json.loads(answer)

    def _ended(self) -> ForkServerEndedError:
        if self._errors is None:
            return ForkServerEndedError("the fork server has ended; the reason is on stderr of this process")
        with contextlib.suppress(FileNotFoundError):
            if text := self._errors.read_text(encoding="utf-8", errors="replace"):
                return ForkServerEndedError(f"the fork server has ended; its stderr:\n{text[-LAST_CHARACTERS:]}")
        return ForkServerEndedError("the fork server has ended without a message on stderr, as after a kill")


class ForkedProcess:
    """The part of ``subprocess.Popen`` that Archon and its tests use. Output goes to files, not to pipes."""

    def __init__(
        self,
        server: ForkServer,
        program: Mapping[str, Any],
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdout: Any = None,
        stderr: Any = None,
        pass_fds: Sequence[int] = (),
        start_new_session: bool = False,
        **_: Any,
    ) -> None:
        self.args = command
        self.returncode: int | None = None
        self._server = server
        output = 1 if stdout is None else stdout.fileno()
        errors = output if stderr == subprocess.STDOUT else 2 if stderr is None else stderr.fileno()
        asked = {
            **program,
            "environment": dict(os.environ if env is None else env),
            "folder": os.fspath(cwd or os.getcwd()),
            "descriptors": [1, 2, *pass_fds],
            "session": start_new_session,
        }
        self.pid = server.start(asked, command, [output, errors, *pass_fds])

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

    def kill(self) -> None:
        """See ``subprocess.Popen``."""
        self.send_signal(signal.SIGKILL)


def install(forks: ForkServer, *modules: ModuleType) -> None:
    """Let modules start their processes by forks."""
    for module in modules:
        popen = SimpleNamespace(**vars(module.subprocess))
        popen.Popen = forks.popen
        module.subprocess = popen


@contextlib.contextmanager
def starting_by_forks(forks: ForkServer) -> Iterator[None]:
    """Within the block, this process starts ranks of ``archon train``, collectors and servers by forks."""
    undo = _install_everywhere(forks)
    try:
        yield
    finally:
        undo()


def _install_everywhere(forks: ForkServer) -> Callable[[], None]:
    """Returns a function that restores the real processes."""
    modules = [importlib.import_module(name) for name in STARTERS if importlib.util.find_spec(name.split(".")[0])]
    before = [(module, module.subprocess) for module in modules]
    install(forks, *modules)

    def undo() -> None:
        for module, original in before:
            module.subprocess = original

    return undo


def serve_owner(channel: socket.socket, owner: int, *, nested: bool) -> NoReturn:
    """Serve an owner in this new process, to its end."""
    try:
        die_with_parent()
        serve(channel, owner, fork_from_now_on if nested else None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def fork_from_now_on() -> None:
    """Start ranks, collectors and servers by forks, for the rest of this process, which has one thread."""
    _install_everywhere(ForkServer(nested=True))


def _program(command: Sequence[str]) -> dict[str, Any] | None:
    """What to run; ``None`` for a program of another kind."""
    if command[0] != sys.executable:
        return None
    flags = [part for part in command[1:3] if part in ("-P", "-u")]
    kind, *rest = map(str, command[1 + len(flags) :])
    shared = {"isolated": "-P" in flags, "unbuffered": "-u" in flags}
    if kind.endswith(".py"):
        return {"script": kind, "arguments": rest, **shared}
    target, *arguments = rest
    if kind == "-m":
        return {"module": target, "arguments": arguments, **shared}
    if kind == "-c" and any(name in target for name in ("archon_rl.collector", "archon_core.cli.main")):
        return {"code": target, "arguments": arguments, **shared}
    return None
