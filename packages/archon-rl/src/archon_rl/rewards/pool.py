"""``RewardPool``: reward processes that share the calls of a batch, each call with a time limit.

A process that hangs is killed and replaced, and so is one that ended. The completion that it worked on has no reward.
"""

from __future__ import annotations

import selectors
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from archon_core import errors
from archon_core.errors import ArchonError, ConfigError, DataError, RewardError
from archon_rl.fingerprint import Fingerprint
from archon_rl.rewards.calls import Outcome, RewardCall
from archon_rl.rewards.checking import shown_completion
from archon_rl.rewards.reward_process import START_SECONDS, RewardProcess
from archon_rl.rewards.source import RewardSource

MAX_CHUNK = 32
"""Calls per message: enough to make messages cheap."""

POLL_SECONDS = 0.2
"""Between looks whether a process ended whose child processes keep the socket open."""

PATIENCE = 8
"""A batch is given up when so many calls, or two per process, hang or end their process before any call is answered."""


@dataclass
class _Batch:
    """The calls of a batch: their outcomes so far, and the numbers of calls that no process has."""

    calls: Sequence[RewardCall]
    waiting: deque[int] = field(init=False)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    n_lost: int = 0
    n_answered: int = 0

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
    """

    def __init__(
        self, source: RewardSource, *, processes: int, timeout: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._n_processes = processes
        self._timeout = timeout
        self._clock = clock
        self._processes: list[RewardProcess] = []
        self._fingerprint: Fingerprint | None = None

    def start(self) -> Fingerprint:
        """See ``RewardRunner``."""
        if self._source.target.startswith("__main__:"):
            raise ConfigError(
                f"reward {self._source.name!r}: found a function of __main__, which a reward process cannot import; "
                "move it into a module, or set rewards.processes=0"
            )
        batch = _Batch(())
        while self._fingerprint is None:
            self._start_processes(self._n_processes)
            self._listen(batch)
        return self._fingerprint

    def score(self, calls: Sequence[RewardCall]) -> list[Outcome]:
        """See ``RewardRunner``."""
        self.start()
        self._remove_ended()
        batch = _Batch(calls)
        try:
            while batch.n_left:
                self._start_processes(min(self._n_processes, batch.n_left))
                self._hand_out(batch)
                self._listen(batch)
        except BaseException:  # also an interrupt; the processes still have calls of this batch
            self.close()
            raise
        return [batch.outcomes[number] for number in range(len(calls))]

    def close(self) -> None:
        """See ``RewardRunner``."""
        for process in self._processes:
            process.close()
        self._processes.clear()

    def _remove_ended(self) -> None:
        """Remove processes that ended between batches, such as for want of memory; no call is to blame."""
        for process in [process for process in self._processes if process.is_idle and process.has_ended]:
            process.kill()
            self._processes.remove(process)

    def _start_processes(self, number: int) -> None:
        while len(self._processes) < number:
            self._processes.append(RewardProcess(self._source, self._timeout, self._clock))

    def _hand_out(self, batch: _Batch) -> None:
        """Give calls to idle processes, fewer at a time towards the end of the batch."""
        for process in [process for process in self._processes if process.is_idle]:
            if not batch.waiting:
                return
            size = max(1, min(MAX_CHUNK, len(batch.waiting) // (4 * self._n_processes)))
            numbers = [batch.waiting.popleft() for _ in range(min(size, len(batch.waiting)))]
            try:
                taken = process.take(numbers, [batch.calls[number] for number in numbers])
            except Exception as error:  # what pickle raises depends on the object
                place = batch.calls[numbers[0]].place
                raise DataError(
                    f"{place}: cannot send the record to a reward process ({type(error).__name__}: {error}); leave out "
                    "the field, or set rewards.processes=0"
                ) from error
            if not taken:
                self._lose(process, batch, process.describe_end())

    def _listen(self, batch: _Batch) -> None:
        """Wait until a process answers, ends, or exceeds its time limit."""
        if not self._processes:  # all ended as they were given calls
            return
        now = self._clock()
        wait = min(POLL_SECONDS, max(0.0, min(process.deadline for process in self._processes) - now))
        readable = self._readable(wait)
        for process in readable:
            if process not in self._processes:  # the batch was given up
                return
            replies = process.replies()
            for reply in replies or ():
                self._take_reply(process, reply, batch)
            if replies is None:
                self._lose(process, batch, process.describe_end())
        now = self._clock()
        for process in [process for process in self._processes if process not in readable]:
            if process not in self._processes:
                return
            if process.deadline < now:
                limit = f"{self._timeout:g} s (rewards.timeout_seconds)" if process.ready else f"{START_SECONDS:g} s"
                self._lose(process, batch, f"it gave no answer within {limit}", timed_out=True)
            elif process.has_ended:
                self._lose(process, batch, process.describe_end())

    def _readable(self, wait: float) -> list[RewardProcess]:
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                selector.register(process.channel, selectors.EVENT_READ, process)
            return [key.data for key, _ in selector.select(wait)]

    def _take_reply(self, process: RewardProcess, reply: dict[str, Any], batch: _Batch) -> None:
        if "fingerprint" in reply:
            self._fingerprint = Fingerprint(**reply["fingerprint"])
            process.set_ready()
        elif "outcomes" in reply:
            for outcome in reply["outcomes"]:
                batch.outcomes[process.answered()] = Outcome.from_json(outcome)
                batch.n_answered += 1
        else:
            raise _error(reply)

    def _lose(self, process: RewardProcess, batch: _Batch, how: str, *, timed_out: bool = False) -> None:
        """Remove a process that hangs or has ended; its other calls wait again."""
        process.kill()
        self._processes.remove(process)
        if not process.ready:
            raise RewardError(
                f"reward {self._source.name!r}: {how} before it had imported {self._source.target}; import the module "
                "yourself, and correct what hangs or ends the process"
            )
        if not process.pending:
            return
        number, others = process.give_back()
        batch.waiting.extendleft(reversed(others))
        call, batch.n_lost = batch.calls[number], batch.n_lost + 1
        batch.outcomes[number] = Outcome(
            error=f"{call.place}: reward {self._source.name!r}: {how}; the completion was "
            f"{shown_completion(call.completion)}",
            cause="time limit" if timed_out else "end of the process",
            timed_out=timed_out,
        )
        if not batch.n_answered and batch.n_lost >= max(PATIENCE, 2 * self._n_processes):
            self._give_up(batch)

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
