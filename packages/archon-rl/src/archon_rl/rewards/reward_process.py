"""``RewardProcess``: the trainer's side of one reward process."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from archon_rl.rewards.calls import RewardCall
from archon_rl.rewards.messages import CallCounter, Receiver, send
from archon_rl.rewards.source import RewardSource

START_SECONDS = 300.0
"""Time limit for starting Python and importing the reward function with all that it needs."""

EXIT_SECONDS = 1.0
"""Time for an idle process to end by itself, before it is killed."""

_MAIN = (
    "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments.pop('path'); "
    "from archon_rl.rewards.worker import main; main(**arguments)"
)


class RewardProcess:
    """A process that imports the reward function and then waits for calls.

    It leads a process group, so that ``kill`` also ends the processes that the function started, and Ctrl-C in the
    terminal reaches the trainer alone.

    Attributes:
        pending: numbers of the calls that it has not answered, in their order.
        deadline: of the call or of the import that it works on, on the monotonic clock; infinite for none.
        ready: whether it has imported the function.
    """

    def __init__(self, source: RewardSource, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout, self._clock = timeout, clock
        self.channel, theirs = socket.socketpair()
        self._counter_file = tempfile.TemporaryFile()  # noqa: SIM115 - kill() closes it
        self._counter = CallCounter(self._counter_file.fileno())
        self._n_begun = self._n_answered = 0
        arguments = {
            "path": sys.path,
            "descriptor": theirs.fileno(),
            "counter": self._counter_file.fileno(),
            "trainer": os.getpid(),
            "source": asdict(source),
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, json.dumps(arguments)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), self._counter_file.fileno()],
                process_group=0,
            )
        self.channel.settimeout(timeout)
        self._receiver = Receiver(self.channel)
        self.pending: deque[int] = deque()
        self.ready = False
        self.deadline = clock() + START_SECONDS

    def set_ready(self) -> None:
        """Take note that the function is imported."""
        self.ready, self.deadline = True, math.inf

    @property
    def is_idle(self) -> bool:
        """Whether it can take calls."""
        return self.ready and not self.pending

    def take(self, numbers: Sequence[int], calls: Sequence[RewardCall]) -> bool:
        """Send it the calls of these numbers; false if it is gone or does not read."""
        fields = [(c.prompt, c.completion, dict(c.record), c.place) for c in calls]
        self.pending.extend(numbers)
        self.deadline = self._clock() + self._timeout
        try:
            send(self.channel, pickle.dumps(fields))
        except OSError:
            return False
        return True

    def replies(self) -> list[dict[str, Any]] | None:
        """The replies that have come; ``None`` if the process is gone. Blocks if the socket is not readable."""
        messages = self._receiver.read()
        return None if messages is None else [json.loads(message) for message in messages]

    def answered(self) -> int:
        """Take note of an answered call; return its number. The next call gets the whole time limit."""
        number = self.pending.popleft()
        self._n_answered += 1
        self.deadline = self._clock() + self._timeout if self.pending else math.inf
        return number

    def give_back(self) -> tuple[int, list[int]]:
        """Of a killed process's unanswered calls, the number of the one that it worked on, and the others."""
        place = min(max(self._n_begun - self._n_answered - 1, 0), len(self.pending) - 1)
        others = list(self.pending)
        return others.pop(place), others

    def describe_end(self) -> str:
        """How the process ended, for messages. A process that only closed its socket is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_SECONDS)
        code = self._process.poll()
        if code is None:
            return "its process closed the connection to the trainer"
        if code < 0:
            return f"{_signal_name(-code)} killed its process"
        return f"it ended its process with exit code {code}"

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def close(self) -> None:
        """Let the process end, kill it if it does not."""
        self.channel.close()
        if self.is_idle:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill the process and the processes of its group."""
        self._process.poll()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if not self._counter_file.closed:
            self._n_begun = self._counter.read()
            self._counter_file.close()
        self.channel.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
