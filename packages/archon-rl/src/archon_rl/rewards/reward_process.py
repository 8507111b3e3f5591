"""``RewardProcess``: the trainer's side of one reward process."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from archon_rl.rewards.environment import reward_environment
from archon_rl.rewards.messages import TRAINERS_SIGNALS, CallCounter, Receiver, send
from archon_rl.rewards.process_group import ProcessGroup
from archon_rl.rewards.source import RewardSource

START_SECONDS = 300.0
"""Time limit for starting Python and importing the reward function with all that it needs."""

EXIT_SECONDS = 1.0
"""Time for a process to end by itself, before it is killed."""

_MAIN = (
    "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments.pop('path'); "
    "from archon_rl.rewards.worker import main; main(**arguments)"
)


class RewardProcess:
    """A process that imports the reward function and then waits for calls.

    Attributes:
        pending: numbers of the calls that it has not answered, in their order.
        deadline: of the call or of the import that it works on, on the monotonic clock; infinite for none.
        ready: whether it has imported the function.
        is_connected: whether it can send further replies.
    """

    def __init__(self, source: RewardSource, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._source, self._timeout, self._clock = source, timeout, clock
        self.channel, self._theirs = socket.socketpair()
        self.channel.setblocking(False)
        self._receiver = Receiver(self.channel)
        self._counter_file = tempfile.TemporaryFile()  # noqa: SIM115 - kill() closes it
        self._counter = CallCounter(self._counter_file.fileno())
        self._counter.write(0)  # reserves the space: a full disk fails here, not in a call
        self._n_begun = self._n_answered = 0
        self._group: ProcessGroup | None = None
        self._exit_code: int | None = None
        self._late: list[bytes] = []
        self.pending: deque[int] = deque()
        self.ready, self.is_connected = False, True
        self.deadline = math.inf

    def start(self) -> None:
        """Start it. Apart from the constructor, so that an interrupt leaves no process that nobody knows.

        Raises:
            OSError: the process cannot be started.
        """
        arguments = {
            "path": sys.path,
            "descriptor": self._theirs.fileno(),
            "counter": self._counter_file.fileno(),
            "trainer": os.getpid(),
            "source": asdict(self._source),
        }
        self.deadline = self._clock() + START_SECONDS
        self._group = ProcessGroup(
            [sys.executable, "-c", _MAIN, json.dumps(arguments)],
            held=TRAINERS_SIGNALS,
            descriptors=[self._theirs.fileno(), self._counter_file.fileno()],
            environment=reward_environment(os.environ),
        )
        self._theirs.close()

    def set_ready(self) -> None:
        """Take note that the function is imported."""
        self.ready, self.deadline = True, math.inf

    @property
    def is_idle(self) -> bool:
        """Whether it can take calls."""
        return self.ready and not self.pending

    def take(self, numbers: Sequence[int], calls: Sequence[tuple[str, bytes]]) -> None:
        """Send it the calls of these numbers: place, and the other fields pickled.

        Raises:
            OSError: it is gone; a TimeoutError if it does not read.
        """
        self.pending.extend(numbers)
        self.deadline = self._clock() + self._timeout
        self.channel.settimeout(self._timeout)
        try:
            send(self.channel, pickle.dumps(list(calls)))
        finally:
            self.channel.setblocking(False)

    def replies(self) -> list[dict[str, Any]]:
        """The replies that have come since the last call; does not wait."""
        late, self._late = self._late, []
        return [json.loads(message) for message in late + self._arrived()]

    def answered(self) -> int:
        """Take note of an answered call; return its number. The next call gets the whole time limit."""
        number = self.pending.popleft()
        self._n_answered += 1
        self.deadline = self._clock() + self._timeout if self.pending else math.inf
        return number

    @property
    def n_answered(self) -> int:
        """Number of calls that it has answered since its start."""
        return self._n_answered

    def give_back(self) -> tuple[int | None, list[int]]:
        """Of a killed process's unanswered calls, the number of the one that it worked on, if any, and the others."""
        others = list(self.pending)
        self.pending.clear()
        if self._n_begun <= self._n_answered or not others:
            return None, others
        return others.pop(self._n_begun - self._n_answered - 1), others

    def describe_timeout(self) -> str:
        """What a process did whose deadline is over, for messages."""
        limit = f"{self._timeout:g} s (rewards.timeout_seconds)" if self.ready else f"{START_SECONDS:g} s"
        return f"it gave no answer within {limit}"

    def describe_end(self) -> str:
        """How a killed process had ended, for messages."""
        code = self._exit_code
        if code is None:
            return "its process closed the connection to the trainer"
        if code < 0:
            return f"{_signal_name(-code)} killed its process"
        return f"it ended its process with exit code {code}"

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._group is None or self._group.has_ended

    def finish(self) -> None:
        """Let an idle process end by itself."""
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_WR)

    def wait(self, seconds: float) -> None:
        """Wait for its end, at most so long."""
        if self._group is not None:
            self._group.wait(seconds)

    def kill(self) -> None:
        """Kill the process and the processes of its group; ``replies`` returns what it had sent. Idempotent."""
        self._theirs.close()
        if self._group is not None and self._exit_code is None:
            self._exit_code = self._group.kill()
        if not self._counter_file.closed:
            self._n_begun = self._counter.read()
            self._counter_file.close()
        self._late += self._arrived()
        self.channel.close()

    def _arrived(self) -> list[bytes]:
        if self.channel.fileno() < 0 or not self.is_connected:
            return []
        messages, self.is_connected = self._receiver.arrived()
        return messages


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
