"""The state of a server's generation: requests, pause, and the weights in use. Equal on all ranks of a server.

It has no thread and no clock: given the same commands, every rank takes the same decisions and enters the same
collectives.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from archon_core.contracts.rollout import Completion
from archon_core.errors import ArchonError, ServerError
from archon_core.serving.record import PauseMode
from archon_rollout.admission import Sample
from archon_rollout.generation_loop import GenerationLoop
from archon_rollout.requests import samples_of
from archon_rollout.server.commands import Abort, BuildCopy, Command, Commit, Pause, Results, Resume, Score, Submit
from archon_rollout.server.scoring import score
from archon_rollout.server.weight_copies import ServedWeights

EXTRA_ROWS = 1
"""Rows for short calls while all others are taken: probes must not wait until a long completion ends."""


class ServingLoop:
    """Executes commands and generates.

    Args:
        weights: the weights in use, and their updates.
        max_rows: largest number of samples to decode at once, beside ``EXTRA_ROWS`` short ones.
    """

    def __init__(self, weights: ServedWeights, *, max_rows: int) -> None:
        self._weights = weights
        self._max_rows = max_rows
        self._generating = ExitStack()
        self._generating.enter_context(weights.active.generating())
        self._loop = self._new_loop()
        self._completions: dict[int, list[Completion]] = {}
        self._missing: dict[int, int] = {}
        self._to_score: deque[Score] = deque()
        self._pause: PauseMode | None = None
        self.switch_seconds = 0.0
        """Duration of the last switch of weights, in which no token was generated."""

    @property
    def is_paused(self) -> bool:
        """Whether no token is generated until ``Resume``."""
        return self._pause is not None and not (self._pause == "wait" and self._loop.n_running)

    @property
    def has_work(self) -> bool:
        """Whether ``run`` would generate a token or score a request."""
        return self._generates or self._scores

    @property
    def _generates(self) -> bool:
        if self.is_paused:
            return False
        return self._loop.n_running > 0 or (self._loop.n_waiting > 0 and self._pause is None)

    @property
    def _scores(self) -> bool:
        return bool(self._to_score) and not self.is_paused

    @property
    def n_requests(self) -> int:
        """Number of unfinished requests."""
        return len(self._completions) + len(self._to_score)

    @property
    def n_running(self) -> int:
        """Number of samples that are being decoded."""
        return self._loop.n_running

    @property
    def n_waiting(self) -> int:
        """Number of samples that wait for a row."""
        return self._loop.n_waiting

    def run(self, commands: Iterable[Command]) -> Results:
        """Execute ``commands``, then one step, then one request for scores.

        Generation and scoring take turns, so that neither waits until the other has nothing to do.
        """
        results = Results()
        for command in commands:
            self._execute(command, results)
        if self._generates:
            try:
                progress = self._loop.step(admits=self._pause is None)
            except ArchonError as error:
                self._fail_all(error, results)
            else:
                results.tokens = progress.tokens
                self._finish(progress.finished, results)
        if self._scores:
            self._score(self._to_score.popleft(), results)
        return results

    def close(self) -> None:
        """Give the engine back; nothing can be generated afterwards."""
        self._generating.close()

    def _execute(self, command: Command, results: Results) -> None:
        match command:
            case Submit(number, request, streams, records_experts, call, is_short):
                samples = samples_of(
                    number, request, streams=streams, records_experts=records_experts, call=call, is_short=is_short
                )
                completions = [Completion((), (), (), "length")] * len(request.seeds)
                if samples:
                    self._completions[number], self._missing[number] = completions, len(samples)
                    self._loop.submit(number, request.prompt_ids, samples)
                else:
                    results.finished[number] = completions
            case Score():
                self._to_score.append(command)
            case Abort(numbers):
                self._abort(numbers, results)
            case Pause(mode):
                self._pause = mode
                if mode == "abort":
                    self._abort(None, results)
            case Resume():
                self._pause = None
            case Commit(version):
                self._commit(version)
            case BuildCopy():
                self._weights.build_copy()

    def _abort(self, numbers: Iterable[int] | None, results: Results) -> None:
        generating = self._completions.keys() if numbers is None else numbers
        self._finish(self._loop.abort(frozenset(generating)), results)
        dropped = [one for one in self._to_score if numbers is None or one.number in numbers]
        for one in dropped:
            self._to_score.remove(one)
            results.failed[one.number] = ServerError("the request for scores was aborted; send it again")

    def _score(self, command: Score, results: Results) -> None:
        """Score outside of the state for generation, so that values are those of a training engine's forward pass."""
        weights = self._weights
        self._generating.close()
        try:
            results.scores[command.number] = score(weights.active, command.request, version=weights.version)
        except ArchonError as error:
            results.failed[command.number] = error
        finally:
            self._generating = ExitStack()
            self._generating.enter_context(weights.active.generating())

    def _commit(self, version: int) -> None:
        start = time.perf_counter()
        before = self._weights.active
        self._weights.updates.commit(version)
        if self._weights.active is before:  # a repeated commit
            return
        prepared_before = self._generating
        self._generating = ExitStack()
        self._generating.enter_context(self._weights.active.generating())
        prepared_before.close()
        self._loop.change_weights(self._weights.active.module)
        self.switch_seconds = time.perf_counter() - start

    def _finish(self, ended: Sequence[tuple[Sample, Completion]], results: Results) -> None:
        for sample, completion in ended:
            number = sample.request
            results.n_tokens += len(completion.token_ids)
            self._completions[number][sample.number] = completion
            self._missing[number] -= 1
            if self._missing[number] == 0:
                del self._missing[number]
                completions = self._completions.pop(number)
                if sample.records_experts and any(c.token_ids and c.routed_experts is None for c in completions):
                    results.failed[number] = ServerError(
                        "routed_experts: found true, but the model has no experts; leave it out"
                    )
                else:
                    results.finished[number] = completions

    def _fail_all(self, error: Exception, results: Results) -> None:
        """End all requests with an error, such as NaN in the logits. New weights may mend it, so the server goes on."""
        results.failed.update(dict.fromkeys(self._completions, error))
        self._completions, self._missing = {}, {}
        self._loop = self._new_loop()

    def _new_loop(self) -> GenerationLoop:
        weights = self._weights
        return GenerationLoop(
            weights.active.module,
            device=weights.active.device,
            max_rows=self._max_rows,
            extra_rows=EXTRA_ROWS,
            version=lambda: weights.version,
        )
