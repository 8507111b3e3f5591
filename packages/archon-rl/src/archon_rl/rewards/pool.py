"""``RewardPool``: reward processes that share the calls of a batch, each call with a time limit.

A process that hangs is killed and replaced, and so is one that ended. The completion that it worked on has no reward.
A process and its pool run at the same time, so only a dead process cannot surprise: the pool reads all that a process
has sent before it decides about it, and again after it has killed it.
"""

from __future__ import annotations

import pickle
import selectors
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from archon_core import errors
from archon_core.errors import ArchonError, ConfigError, RewardError
from archon_rl.fingerprint import Fingerprint
from archon_rl.rewards.calls import Outcome, RewardCall
from archon_rl.rewards.checking import shown_completion
from archon_rl.rewards.reward_process import EXIT_SECONDS, RewardProcess
from archon_rl.rewards.source import RewardSource
from archon_rl.rewards.source_fingerprint import check_same

MAX_CHUNK = 32
"""Calls per message: enough to make messages cheap."""

POLL_SECONDS = 0.2
"""Between looks whether a process ended whose child processes keep the socket open."""

PATIENCE = 8
"""A batch is given up when so many calls, or two per process, hang or end their process before any call is answered. So
many processes in a row may end without having begun a call."""


@dataclass
class _Batch:
    """The calls of a batch: their outcomes so far, and the numbers of calls that no process has."""

    calls: Sequence[RewardCall]
    waiting: deque[int] = field(init=False)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    n_lost: int = 0
    n_answered: int = 0
    n_in_vain: int = 0

    def __post_init__(self) -> None:
        self.waiting = deque(range(len(self.calls)))

    @property
    def n_left(self) -> int:
        return len(self.calls) - len(self.outcomes)


class RewardPool:
    """A ``RewardRunner`` with processes. Belongs to the thread that uses it.

    Args:
        source: the reward.
        processes: their number.
        timeout: time limit of a call in seconds.
        clock: monotonic; returns seconds.
        expected: what every process must have imported; ``None`` for whatever the first one imports.
    """

    def __init__(
        self,
        source: RewardSource,
        *,
        processes: int,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
        expected: Fingerprint | None = None,
    ) -> None:
        self._source = source
        self._n_processes = processes
        self._timeout = timeout
        self._clock = clock
        self._processes: list[RewardProcess] = []
        self._fingerprint = expected

    def start(self) -> Fingerprint:
        """See ``RewardRunner``."""
        if self._source.target.startswith("__main__:"):
            raise ConfigError(
                f"reward {self._source.name!r}: found a function of __main__, which a reward process cannot import; "
                "move it into a module, or set rewards.processes=0"
            )
        with self._closing_on_error():
            while self._fingerprint is None:
                self._start_processes(self._n_processes)
                self._listen(_Batch(()))
        return self._fingerprint

    def score(self, calls: Sequence[RewardCall]) -> list[Outcome]:
        """See ``RewardRunner``."""
        self.start()
        with self._closing_on_error():  # the processes would still have calls of this batch
            self._look_at_all(_Batch(()))  # some may have ended between batches, such as for want of memory
            batch = _Batch(calls)
            while batch.n_left:
                self._start_processes(min(self._n_processes, batch.n_left))
                self._hand_out(batch)
                self._listen(batch)
        return [batch.outcomes[number] for number in range(len(calls))]

    def close(self) -> None:
        """See ``RewardRunner``. May be called again after an interrupt."""
        with ExitStack() as stack:
            for process in self._processes:
                stack.callback(process.kill)
            idle = [process for process in self._processes if process.is_idle]
            for process in idle:
                process.finish()
            end = time.monotonic() + EXIT_SECONDS
            for process in idle:
                process.wait(end - time.monotonic())
        self._processes.clear()

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        """Close the pool after any exception, also an interrupt."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _start_processes(self, number: int) -> None:
        while len(self._processes) < number:
            try:
                self._processes.append(RewardProcess(self._source, self._timeout, self._clock))
                self._processes[-1].start()
            except OSError as error:
                raise RewardError(
                    f"reward {self._source.name!r}: cannot start a reward process: {error}; lower rewards.processes, "
                    "or raise the limits of the machine"
                ) from error

    def _hand_out(self, batch: _Batch) -> None:
        """Give calls to idle processes, fewer at a time towards the end of the batch."""
        for process in [process for process in self._processes if process.is_idle]:
            size = max(1, min(MAX_CHUNK, len(batch.waiting) // (4 * self._n_processes)))
            calls: dict[int, tuple[str, bytes]] = {}
            while batch.waiting and len(calls) < size:
                number = batch.waiting.popleft()
                pickled = self._pickled(batch, number)
                if pickled is not None:
                    calls[number] = pickled
            if not calls:
                return
            try:
                process.take(list(calls), list(calls.values()))
            except TimeoutError:
                self._lose(process, batch, timed_out=True)
            except OSError:
                self._lose(process, batch)

    def _pickled(self, batch: _Batch, number: int) -> tuple[str, bytes] | None:
        """A call as it is sent; ``None`` after the outcome of one that cannot be pickled."""
        call = batch.calls[number]
        try:
            return call.place, pickle.dumps((call.prompt, call.completion, dict(call.record)))
        except Exception as error:  # what pickle raises depends on the object
            batch.outcomes[number] = Outcome(
                error=f"{call.place}: cannot send the record to a reward process ({type(error).__name__}: {error}); "
                "leave out the field, or set rewards.processes=0",
                cause=f"a record that cannot be sent: {type(error).__name__}",
            )
            return None

    def _listen(self, batch: _Batch) -> None:
        """Wait until a process answers, ends, or exceeds its time limit."""
        if not self._processes:  # all ended as they were given calls
            return
        nearest = min(process.deadline for process in self._processes) - self._clock()
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                selector.register(process.channel, selectors.EVENT_READ)
            selector.select(min(POLL_SECONDS, max(0.0, nearest)))
        self._look_at_all(batch)

    def _look_at_all(self, batch: _Batch) -> None:
        for process in list(self._processes):
            if process not in self._processes:  # the batch was given up
                return
            self._take_replies(process, batch)
            if not process.is_connected:
                process.wait(EXIT_SECONDS)  # to learn how it ends
                self._lose(process, batch)
            elif process.deadline < self._clock():
                self._lose(process, batch, timed_out=True)
            elif process.has_ended:
                self._lose(process, batch)

    def _take_replies(self, process: RewardProcess, batch: _Batch) -> None:
        for reply in process.replies():
            if "fingerprint" in reply:
                self._check(Fingerprint(**reply["fingerprint"]))
                process.set_ready()
            elif "outcomes" in reply:
                assert reply["first"] == process.n_answered, "answers to calls that the process does not have"
                for outcome in reply["outcomes"]:
                    batch.outcomes[process.answered()] = Outcome.from_json(outcome)
                    batch.n_answered, batch.n_in_vain = batch.n_answered + 1, 0
            else:
                raise _error(reply)

    def _check(self, found: Fingerprint) -> None:
        """All processes must have imported the same source."""
        if self._fingerprint is not None:
            check_same(found, self._fingerprint, "a new reward process")
        self._fingerprint = found

    def _lose(self, process: RewardProcess, batch: _Batch, *, timed_out: bool = False) -> None:
        """Remove a process that hangs or has ended; its other calls wait again."""
        process.kill()
        self._processes.remove(process)
        self._take_replies(process, batch)  # sent before its end
        how = process.describe_timeout() if timed_out else process.describe_end()
        number, others = process.give_back()
        batch.waiting.extendleft(reversed(others))
        if number is None:
            self._lose_in_vain(process, batch, how)
            return
        call = batch.calls[number]
        batch.n_lost, batch.n_in_vain = batch.n_lost + 1, 0
        batch.outcomes[number] = Outcome(
            error=f"{call.place}: reward {self._source.name!r}: {how}; the completion was "
            f"{shown_completion(call.completion)}",
            cause="time limit" if timed_out else "end of the process",
            timed_out=timed_out,
        )
        if not batch.n_answered and batch.n_lost >= self._patience:
            self._give_up(batch)

    @property
    def _patience(self) -> int:
        return max(PATIENCE, 2 * self._n_processes)

    def _lose_in_vain(self, process: RewardProcess, batch: _Batch, how: str) -> None:
        """No call is to blame for the end of a process. Raises if it is the first one, or after too many."""
        if self._fingerprint is None:
            raise RewardError(
                f"reward {self._source.name!r}: {how} before it had imported {self._source.target}; import the module "
                "yourself, and correct what hangs or ends the process"
            )
        batch.n_in_vain += 1
        if batch.n_in_vain > self._patience:
            raise RewardError(
                f"reward {self._source.name!r}: {batch.n_in_vain} processes in a row ended without having called it; "
                f"the last: {how}; import {self._source.target} yourself, and correct what hangs or ends the process"
            )

    def _give_up(self, batch: _Batch) -> None:
        self.close()
        for number, call in enumerate(batch.calls):
            text = (
                f"{call.place}: reward {self._source.name!r}: not called: {batch.n_lost} calls before it had no answer"
            )
            batch.outcomes.setdefault(number, Outcome(error=text, cause="given up"))
        batch.waiting.clear()


def _error(reply: dict[str, Any]) -> ArchonError:
    """The error that a process reports: of Archon's class of that name, if there is one."""
    kind = getattr(errors, reply["error"], RewardError)
    return kind(reply["text"]) if issubclass(kind, ArchonError) else RewardError(reply["text"])
