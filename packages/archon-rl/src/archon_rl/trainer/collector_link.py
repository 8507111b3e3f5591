"""``CollectorLink``: the first rank's side of the collector's process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from archon_core.ranks.priority import put_behind_caller
from archon_core.serving.record import ServerRecord
from archon_rl.collector.group import Group
from archon_rl.collector.messages import packed, receive, value_of
from archon_rl.collector.states import read_batch, read_settled
from archon_rl.collector.window import ConsumedBatch, Settled
from archon_rl.rewards.messages import TRAINERS_SIGNALS

START_SECONDS = 300.0
"""Time limit for starting Python, loading the data and importing the reward."""

CALL_SECONDS = 60.0
"""Time limit of a call. The collector's loop does not wait for anything, so a later answer never comes."""

STOP_SECONDS = 10.0
"""Time for the process to end by itself, before it is killed."""

_LOAD = ("running", "waiting", "finished", "busy_seconds", "waited_seconds", "server_idle")
"""The collector's load: groups in progress and waiting now; since the last batch, finished groups, and the seconds in
which groups were sampled and in which the trainer waited, and the share of the servers' time without a request."""

_MAIN = (
    "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments['path']; "
    "from archon_rl.collector.process import main; main(arguments['descriptor'], arguments['trainer'])"
)


class CollectorLostError(Exception):
    """The collector's process has ended, or does not answer."""


class CollectorLink:
    """One collector process. It leads a process group, so Ctrl-C in the terminal reaches the trainer alone, and ignores
    signals that a cluster sends to all processes of a job.

    Belongs to the thread that creates it: where the kernel ends the process with the trainer, it goes by that thread.

    Args:
        setup: what the process needs to know; see ``archon_rl.collector.process``.
        log: file for what it prints.

    Raises:
        ArchonError: what the process raised while it started.
        CollectorLostError: it ended before it was ready.
    """

    def __init__(self, setup: Mapping[str, Any], log: Path) -> None:
        self._channel, theirs = socket.socketpair()
        arguments = {"path": sys.path, "descriptor": theirs.fileno(), "trainer": os.getpid()}
        environment = {name: value for name, value in os.environ.items() if name != "ARCHON_SERVER_TOKEN"}
        with theirs, log.open("ab") as output:
            # The process unblocks them when it has installed its handlers.
            previous = signal.pthread_sigmask(signal.SIG_BLOCK, TRAINERS_SIGNALS)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _MAIN, json.dumps(arguments)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=[theirs.fileno()],
                    process_group=0,
                )
            except BaseException:
                signal.pthread_sigmask(signal.SIG_SETMASK, previous)
                raise
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)  # a Ctrl-C that was held takes effect here
            put_behind_caller(self._process.pid)
            self._send(dict(setup), START_SECONDS)
        except BaseException:
            self.close()
            raise

    def publish(self, step: int, version: int, servers: Sequence[ServerRecord], answering: Sequence[str]) -> None:
        """The servers hold the weights after ``step`` training steps; see ``RemoteClient.update``."""
        self._call("publish", step=step, version=version, **_servers(servers, answering))

    def switching(self) -> None:
        """The servers switch to new weights until the next ``publish``."""
        self._call("switching")

    def update_servers(self, version: int, servers: Sequence[ServerRecord], answering: Sequence[str]) -> dict[str, str]:
        """Send the list of servers in service. Returns incarnation -> error of servers that have failed since then."""
        return self._call("servers", version=version, **_servers(servers, answering))

    def take(self, timeout: float) -> tuple[ConsumedBatch[Group], dict[str, Any]] | None:
        """The batch of the next step with the collector's load; ``None`` if it is not complete in time."""
        answer = self._call("take", timeout=timeout)
        return None if answer is None else (read_batch(answer), {name: answer[name] for name in _LOAD})

    def evaluate(self, n_records: int, timeout: float) -> dict[int, Settled[Group]] | None:
        """The groups of the first ``n_records`` held-out records by place, without trajectories; ``None`` if they are
        not complete in time. The first call starts the evaluation."""
        answer = self._call("evaluate", n_records=n_records, timeout=timeout)
        return None if answer is None else read_settled(answer)

    def state(self) -> dict[str, Any]:
        """The window's state, for a checkpoint."""
        return self._call("state")

    def close(self) -> None:
        """End the process. Idempotent."""
        if self._process.poll() is None:
            with contextlib.suppress(CollectorLostError, subprocess.TimeoutExpired):
                self._exchange({"call": "stop"}, STOP_SECONDS)  # the answer may be that of an interrupted call
                self._process.wait(STOP_SECONDS)
        self._channel.close()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _call(self, name: str, **arguments: Any) -> Any:
        return self._send({"call": name, **arguments}, CALL_SECONDS)

    def _send(self, message: dict[str, Any], timeout: float) -> Any:
        return value_of(self._exchange(message, timeout))

    def _exchange(self, message: dict[str, Any], timeout: float) -> dict[str, Any]:
        self._channel.settimeout(timeout)
        try:
            self._channel.sendall(packed(message))
            return receive(self._channel)
        except TimeoutError as error:
            if "call" in message:
                what = f"it gave no answer within {timeout:g} s; does a workflow block the event loop?"
            else:
                what = f"it was not ready within {timeout:g} s; do the data or imports of your modules take that long?"
            raise CollectorLostError(what) from error
        except (OSError, EOFError) as error:
            code = self._process.poll()
            raise CollectorLostError(
                f"its process ended with code {code}" if code is not None else str(error)
            ) from error


def _servers(servers: Sequence[ServerRecord], answering: Sequence[str]) -> dict[str, Any]:
    return {"servers": [one.as_data() for one in servers], "answering": list(answering)}
