"""The thread of the first rank that generates: takes commands, shares them with the other ranks, delivers results.

HTTP handlers run in another thread. They hand over commands through a queue and receive results through futures and
callbacks, which this thread calls.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from archon_core.contracts.rollout import Completion, GenerationRequest
from archon_core.errors import ArchonError, ServerError
from archon_core.ranks.ranks import Ranks
from archon_core.serving.record import PauseMode
from archon_core.serving.scores import Scores, ScoringRequest
from archon_rollout.decode_rows import NewToken
from archon_rollout.requests import is_short
from archon_rollout.server.commands import (
    Abort,
    BuildCopy,
    Command,
    Commit,
    Pause,
    Results,
    Resume,
    Score,
    Stop,
    Submit,
)
from archon_rollout.server.serving_loop import ServingLoop
from archon_rollout.server.throughput import Throughput

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 60.0
"""An idle server sends its other ranks an empty list of commands this often, far below the collectives' time limit."""

REPORT_SECONDS = 10.0
"""Time between two log lines about throughput."""

OnTokens = Callable[[list[NewToken]], None]


@dataclass(frozen=True)
class Ticket:
    """A request in progress.

    Attributes:
        number: of the request.
        completions: done when the request ends; its exception is the error that ended it.
        on_tokens: receives new tokens of a request that streams.
    """

    number: int
    completions: Future[list[Completion]]
    on_tokens: OnTokens | None = None

    @property
    def answer(self) -> Future[list[Completion]]:
        """Done when the request ends."""
        return self.completions


@dataclass(frozen=True)
class ScoringTicket:
    """A request for scores in progress.

    Attributes:
        number: of the request.
        scores: done when they are computed; its exception is the error that ended the request.
    """

    number: int
    scores: Future[Scores]

    @property
    def answer(self) -> Future[Scores]:
        """Done when the request ends."""
        return self.scores


class DecodeThread(threading.Thread):
    """Generates until ``stop``.

    Args:
        serving: used by this thread only.
        ranks: of the server.
        on_failure: called once with an error that this thread cannot survive, after all requests have failed.
    """

    def __init__(self, serving: ServingLoop, ranks: Ranks, *, on_failure: Callable[[BaseException], None]) -> None:
        super().__init__(name="archon-decode", daemon=True)
        self._serving = serving
        self._ranks = ranks
        self._on_failure = on_failure
        # Each entry is executed as a whole, so that the requests of one call share their prefill.
        self._inbox: queue.SimpleQueue[list[tuple[Command, Future[None]]]] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._tickets: dict[int, Ticket] = {}
        self._scoring: dict[int, ScoringTicket] = {}
        self._pausing: list[Future[None]] = []
        self._executing: list[tuple[Command, Future[None]]] = []
        self._failure: BaseException | None = None
        self._throughput = Throughput()
        self._unreported = 0
        self._reported_at = time.monotonic()

    @property
    def is_paused(self) -> bool:
        """Whether generation is paused."""
        return self._serving.is_paused

    @property
    def n_requests(self) -> int:
        """Number of unfinished requests."""
        return len(self._tickets) + len(self._scoring)

    @property
    def tokens_per_second(self) -> float:
        """Throughput of the last seconds."""
        return self._throughput.rate

    @property
    def switch_seconds(self) -> float:
        """See ``ServingLoop``."""
        return self._serving.switch_seconds

    def submit(
        self,
        requests: Sequence[GenerationRequest],
        *,
        records_experts: bool = False,
        on_tokens: OnTokens | None = None,
        call: int | None = None,
    ) -> list[Ticket]:
        """Start requests, whose options were checked, together. ``call`` is as for ``Service.submit``."""
        tickets = [Ticket(next(self._numbers), _future(), on_tokens) for _ in requests]
        self._tickets.update({ticket.number: ticket for ticket in tickets})
        streams = on_tokens is not None
        turn = tickets[0].number if call is None and tickets else call or 0
        short = call is None and is_short(requests)
        self._send(
            *(
                Submit(ticket.number, request, streams, records_experts, turn, short)
                for ticket, request in zip(tickets, requests, strict=True)
            )
        )
        return tickets

    def score(self, request: ScoringRequest) -> ScoringTicket:
        """Compute the scores of a request, which was checked, between two steps of generation."""
        ticket = ScoringTicket(next(self._numbers), _future())
        self._scoring[ticket.number] = ticket
        self._send(Score(ticket.number, request))
        return ticket

    def abort(self, numbers: Sequence[int] | None) -> Future[None]:
        """End requests with the tokens that they have; ``None`` ends all."""
        return self._send(Abort(None if numbers is None else frozenset(numbers)))

    def pause(self, mode: PauseMode) -> Future[None]:
        """Stop generation; done when it is paused."""
        return self._send(Pause(mode))

    def resume(self) -> Future[None]:
        """Continue generation."""
        return self._send(Resume())

    def commit(self, version: int) -> Future[None]:
        """Switch to received weights; the caller has checked that they are complete."""
        return self._send(Commit(version))

    def build_copy(self) -> Future[None]:
        """Build the second copy of the weights on all ranks."""
        return self._send(BuildCopy())

    def stop(self) -> None:
        """End the thread after the current step."""
        self._send(Stop())

    def run(self) -> None:
        """The thread's body."""
        try:
            while self._turn():
                pass
        except BaseException as error:
            self._fail(error)
            self._on_failure(error)

    def _send(self, *commands: Command) -> Future[None]:
        """Send commands; returns the future of the last one."""
        entry = [(command, _future()) for command in commands]
        self._inbox.put(entry)
        if self._failure is not None:
            self._fail(self._failure)
        return entry[-1][1]

    def _turn(self) -> bool:
        """One exchange of commands and one step; false after ``Stop``."""
        received = self._executing = self._receive()
        commands = self._ranks.broadcast([command for command, _ in received])
        if any(isinstance(command, Stop) for command in commands):
            self._fail(ServerError("the server is shutting down; send the request to another one"))
            self._serving.close()
            return False
        self._deliver(self._serving.run(commands))
        for command, done in received:
            if isinstance(command, Pause):
                self._pausing.append(done)
            else:
                done.set_result(None)
        if self._serving.is_paused or any(isinstance(command, Resume) for command in commands):
            for done in self._pausing:
                done.set_result(None)
            self._pausing = []
        self._executing = []
        return True

    def _receive(self) -> list[tuple[Command, Future[None]]]:
        """The commands that have arrived; waits for one if there is nothing to generate."""
        received: list[tuple[Command, Future[None]]] = []
        try:
            while True:
                wait = not received and not self._serving.has_work
                received += self._inbox.get(block=wait, timeout=HEARTBEAT_SECONDS)
        except queue.Empty:
            return received

    def _deliver(self, results: Results) -> None:
        for number, completions in results.finished.items():
            self._tickets.pop(number).completions.set_result(completions)
        for number, scores in results.scores.items():
            self._scoring.pop(number).scores.set_result(scores)
        for number, error in results.failed.items():
            scoring = self._scoring.pop(number, None)
            waiting = self._tickets.pop(number).completions if scoring is None else scoring.scores
            waiting.set_exception(error)
            logger.warning("request failed: %s", error)
        for number, tokens in itertools.groupby(results.tokens, key=lambda new: new.sample.request):
            ticket = self._tickets.get(number)  # a finished request has all its tokens already
            if ticket is not None and ticket.on_tokens is not None:
                ticket.on_tokens(list(tokens))
        self._report(results.n_tokens)

    def _report(self, n_tokens: int) -> None:
        if n_tokens:
            self._throughput.add(n_tokens)
        self._unreported += n_tokens
        now = time.monotonic()
        if now - self._reported_at < REPORT_SECONDS:
            return
        if self._unreported:
            rate = self._unreported / (now - self._reported_at)
            serving = self._serving
            logger.info("%.0f tokens/s, %d running, %d waiting", rate, serving.n_running, serving.n_waiting)
        self._unreported, self._reported_at = 0, now

    def _fail(self, error: BaseException) -> None:
        """End everything that waits for this thread."""
        self._failure = error
        shown = error if isinstance(error, ArchonError) else ServerError(f"generation failed: {error!r}")
        for ticket in list(self._tickets.values()):
            if not ticket.completions.done():
                ticket.completions.set_exception(shown)
        self._tickets.clear()
        for scoring in list(self._scoring.values()):
            if not scoring.scores.done():
                scoring.scores.set_exception(shown)
        self._scoring.clear()
        # Also the commands that this turn had taken from the inbox: whoever sent them waits for their end.
        waiting = [done for _, done in [*self._executing, *self._drain()]] + self._pausing
        for done in waiting:
            if not done.done():
                done.set_exception(shown)
        self._pausing = []

    def _drain(self) -> list[tuple[Command, Future[None]]]:
        left: list[tuple[Command, Future[None]]] = []
        while not self._inbox.empty():
            left += self._inbox.get()
        return left


def _future() -> Future[Any]:
    """A future that nobody can cancel, so that setting its result never fails."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future
