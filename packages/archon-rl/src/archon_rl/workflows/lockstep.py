"""Runs workflows on an engine without servers, whose ``generate`` is collective: in rounds.

Coroutines run until each of them waits for completions or has ended. Then all ranks of the engine answer the requests
of all data ranks together, and the next round begins, until no rank has requests. One process per data rank runs the
coroutines; the others, such as tensor ranks, get its requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from archon_core.contracts.rollout import Completion, GenerationRequest, InferenceEngine
from archon_core.contracts.serving import RolloutClient
from archon_core.errors import TrainingError
from archon_core.ranks.failing_together import Failure, raise_on_every_rank
from archon_core.ranks.ranks import DataRanks

T = TypeVar("T")
Work = Callable[[RolloutClient], Coroutine[Any, Any, T]]
Decode = Callable[[Sequence[int]], str]

QUIET_PASSES = 3
"""Passes of the event loop without a new request after which a round is complete. They decide what is generated
together, not the numbers."""


def run_in_lockstep(
    works: Sequence[Work[T]], engine: InferenceEngine, data_ranks: DataRanks, decode: Decode
) -> list[T]:
    """The results of the works of this data rank, in order. Collective over all ranks of the engine.

    Args:
        works: use a client each; only the process that represents a data rank runs its works.
        engine: answers their requests.
        data_ranks: of the engine.
        decode: finds stop texts.

    Returns:
        Results; empty on other processes of the data rank.

    Raises:
        Exception: on every rank, what a work raised.
    """
    runs_works = data_ranks.is_representative
    rounds = _Rounds(works if runs_works else (), engine)
    with asyncio.Runner() as runner:  # its end cancels the works that are left after an error
        while True:
            own: Exception | None = None
            requests: list[GenerationRequest] = []
            try:
                requests = runner.run(rounds.requests())
            except Exception as error:
                own = error
            shared = data_ranks.everyone.gather(
                (None if own is None else Failure.of(own), [replace(one, decode=None) for one in requests])
            )
            raise_on_every_rank(own, [failure for failure, _ in shared])
            if not any(found for _, found in shared):
                return runner.run(rounds.results())
            mine = shared[data_ranks.members[data_ranks.rank]][1]
            completions = engine.generate([replace(one, decode=decode) for one in mine])
            if runs_works:
                rounds.answer(completions)


@dataclass(frozen=True)
class _Waiting:
    """A request without an answer.

    Attributes:
        place: index of the work.
        request: the request.
        answer: gets its completions.
    """

    place: int
    request: GenerationRequest
    answer: asyncio.Future[list[Completion]]


class _Rounds(Generic[T]):
    """The works of this process, and what they wait for."""

    def __init__(self, works: Sequence[Work[T]], engine: InferenceEngine) -> None:
        self._works, self.engine = works, engine
        self._tasks: list[asyncio.Task[T]] | None = None
        self._waiting: list[_Waiting] = []
        self._sent: list[_Waiting] = []
        self._changed = asyncio.Event()

    async def requests(self) -> list[GenerationRequest]:
        """The requests of a round, once every work waits for one or has ended. Raises what a work raised."""
        if self._tasks is None:
            self._tasks = [asyncio.ensure_future(self._run(place, work)) for place, work in enumerate(self._works)]
        quiet, known = 0, 0
        while quiet < QUIET_PASSES:
            self._changed.clear()
            if not self._all_wait():
                await self._changed.wait()
                quiet = 0
                continue
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == known else 0
            known = len(self._waiting)
        self._sent = [one for one in self._waiting if not one.answer.done()]
        self._waiting = []
        return [one.request for one in self._sent]

    def answer(self, completions: Sequence[list[Completion]]) -> None:
        """Answer the last round."""
        for one, found in zip(self._sent, completions, strict=True):
            if not one.answer.done():  # cancelled meanwhile
                one.answer.set_result(found)

    async def results(self) -> list[T]:
        """The results, after the last round."""
        return [task.result() for task in self._tasks or ()]

    def ask(self, place: int, request: GenerationRequest) -> Awaitable[list[Completion]]:
        """Wait for the completions of a request of work ``place``."""
        waiting = _Waiting(place, request, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._changed.set()
        return waiting.answer

    async def _run(self, place: int, work: Work[T]) -> T:
        try:
            return await work(_Client(self, place))
        finally:
            self._changed.set()

    def _all_wait(self) -> bool:
        assert self._tasks is not None, "requests() starts the works"
        asking = {one.place for one in self._waiting if not one.answer.done()}
        ended = [task.done() for task in self._tasks]
        errors = [_error_of(task) for task in self._tasks if task.done()]  # asks all: asyncio logs the others
        for error in filter(None, errors):
            raise error
        return all(done or place in asking for place, done in enumerate(ended))


def _error_of(task: asyncio.Task[Any]) -> BaseException | None:
    """What a work raised. A ``CancelledError`` is no ``Exception``: it would end this rank while the others wait."""
    if task.cancelled():
        return TrainingError("a workflow raised CancelledError although nobody cancelled it; correct the workflow")
    return task.exception()


@dataclass(frozen=True)
class _Client:
    """The ``RolloutClient`` of one work."""

    rounds: _Rounds[Any]
    place: int

    @property
    def version(self) -> int:
        return self.rounds.engine.version

    async def generate(self, request: GenerationRequest, *, group: str = "") -> list[Completion]:
        return await self.rounds.ask(self.place, request)
