"""``ProcessGroup``: a child process together with the processes that it starts.

The child is reaped last: as long as it is a zombie, its id, which is also the group's, belongs to no other process. So
the signal to the group cannot reach a stranger.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

REAP_SECONDS = 10.0
"""Time for a killed process to disappear, which a file system that does not answer can delay."""

_POLL_SECONDS = 0.005


class ProcessGroup:
    """Starts a process in a new process group, so that Ctrl-C in the terminal does not reach it.

    Args:
        command: program and arguments.
        held: signals that the process starts with blocked; it unblocks them when it has installed its handlers.
        descriptors: file descriptors that the process inherits.
        environment: its environment variables.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        held: Sequence[signal.Signals],
        descriptors: Sequence[int],
        environment: Mapping[str, str],
    ) -> None:
        self._leader: subprocess.Popen[bytes] | None = None
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, held)
        try:
            try:
                self._leader = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, pass_fds=descriptors, env=environment, process_group=0
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, previous)  # a Ctrl-C that was held takes effect here
        except BaseException:
            self.kill()
            raise

    @property
    def has_ended(self) -> bool:
        """Whether the first process has ended. Does not reap it, where the platform can tell without."""
        if self._leader is None or self._leader.returncode is not None:
            return True
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            if self._leader.poll() is None:
                return False
            self._signal()  # at once: the id is free from now on
            return True
        try:
            return os.waitid(os.P_PID, self._leader.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # the trainer ignores SIGCHLD, or reaps every child
            return self._leader.poll() is not None

    def wait(self, seconds: float) -> bool:
        """Wait until the first process has ended, at most so long; whether it has."""
        end = time.monotonic() + seconds
        while not self.has_ended and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        return self.has_ended

    def kill(self) -> int | None:
        """Kill all processes and reap the first. Idempotent.

        Returns:
            The exit code of the first process if it had ended by itself, negative for a signal; else ``None``.
        """
        had_ended = self.has_ended
        if self._leader is None:
            return None
        if self._leader.returncode is None:
            self._signal()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._leader.wait(REAP_SECONDS)
        return self._leader.returncode if had_ended else None

    def _signal(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS forbids it for a zombie
            os.killpg(self._leader.pid, signal.SIGKILL)
