"""The side of a fork server that forks: it takes requests of its owner, and runs each program in a new process.

See ``archon_testing.fork_server``.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

FIRST_FREE_DESCRIPTOR = 500
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def serve(channel: socket.socket, owner: int, enter: Callable[[], None] | None) -> None:
    """Start programs, and tell how they ended, until the owner closes the channel.

    Args:
        channel: a packet socket; requests bring the descriptors of a program.
        owner: the process that a program believes to be its parent.
        enter: called in a new program before it runs.
    """
    codes: dict[int, int] = {}
    while True:
        content, descriptors, _, _ = socket.recv_fds(channel, 1 << 20, 16)
        if not content:
            return
        question = json.loads(content)
        if "start" in question:
            answer: Any = _fork(question["start"], descriptors, channel, owner, enter)
        else:
            pid = question["poll"]
            with contextlib.suppress(ChildProcessError):
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            answer = codes.get(pid)
        channel.send(json.dumps(answer).encode())


def _fork(
    program: Mapping[str, Any],
    descriptors: Sequence[int],
    channel: socket.socket,
    owner: int,
    enter: Callable[[], None] | None,
) -> int:
    pid = os.fork()
    if pid:
        for descriptor in descriptors:
            os.close(descriptor)
        return pid
    code = 1
    try:
        channel.close()
        code = _run(program, descriptors, owner, enter)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(program: Mapping[str, Any], descriptors: Sequence[int], owner: int, enter: Callable[[], None] | None) -> int:
    """Run a program in this new process; returns its exit code."""
    if program["session"]:
        os.setsid()
    else:
        os.setpgid(0, 0)
    _take(descriptors, program["descriptors"])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _set_up(program)
    server, real = os.getppid(), os.getppid
    os.getppid = lambda: owner if real() == server else real()  # this program believes that its owner started it
    if enter is not None:
        enter()
    try:
        if "module" in program:
            sys.argv = [program["module"], *program["arguments"]]
            runpy.run_module(program["module"], run_name="__main__", alter_sys=True)
        elif "script" in program:
            sys.argv = [program["script"], *program["arguments"]]
            runpy.run_path(program["script"], run_name="__main__")
        else:
            sys.argv = ["-c", *program["arguments"]]
            exec(program["code"], {"__name__": "__main__"})
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _take(received: Sequence[int], targets: Sequence[int]) -> None:
    """Move received descriptors to the numbers that they have in the owner."""
    moved = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_DESCRIPTOR) for one in received]
    for one in received:
        os.close(one)
    for source, target in zip(moved, targets, strict=True):
        os.dup2(source, target)
        os.close(source)


def _set_up(program: Mapping[str, Any]) -> None:
    """Folder, environment, module path and buffering, as Python sets them when it starts."""
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(program["environment"])
    os.chdir(program["folder"])
    own = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    places = {"module": program["folder"], "script": os.path.dirname(program.get("script", ""))}
    first = [] if program["isolated"] else [next((places[kind] for kind in places if kind in program), "")]
    sys.path[:] = [*first, *own, *(part for part in sys.path if part not in ("", *inherited, *own))]
    importlib.invalidate_caches()
    sys.stdout.reconfigure(write_through=program["unbuffered"] or bool(os.environ.get("PYTHONUNBUFFERED")))
