"""What the HTTP routes of a server call: requests, control, weight updates and state."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from archon_core.contracts.rollout import GenerationRequest
from archon_core.errors import ArchonError, ServerError
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.openai_answers import error_body
from archon_core.serving.record import PauseMode, ServerRecord, ServerState
from archon_core.serving.scores import ScoringRequest, ServedModelInfo
from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan
from archon_rollout.model_limits import ModelLimits
from archon_rollout.requests import check_requests
from archon_rollout.server.decode_thread import DecodeThread, OnTokens, ScoringTicket, Ticket
from archon_rollout.server.rank_updates import RankUpdates
from archon_rollout.server.scoring import check_scoring
from archon_rollout.server.weight_copies import ServedWeights

logger = logging.getLogger(__name__)

T = TypeVar("T")


class UnavailableError(ArchonError):
    """The server cannot take the request now; another one, or a later attempt, may succeed."""


class ConflictError(ArchonError):
    """A control call that is meant for another incarnation, or that a later call has overtaken."""


class Service:
    """One server.

    Args:
        decode: generates; started by the caller.
        weights: the weights in use.
        updates: receives new weights on all ranks.
        limits: of the model.
        record: how the server presents itself; its version is that at the start.
        decode_text: token ids -> text with special tokens, to find ``stop`` texts; ``None`` without a tokenizer.
        describe: the model that the server was started with.
    """

    def __init__(
        self,
        decode: DecodeThread,
        weights: ServedWeights,
        updates: RankUpdates,
        limits: ModelLimits,
        record: ServerRecord,
        decode_text: Callable[[Sequence[int]], str] | None = None,
        describe: Callable[[], ServedModelInfo] | None = None,
    ) -> None:
        self._decode = decode
        self._weights = weights
        self._receiving = updates
        self._record = record
        self._decode_text = decode_text
        self._describe = describe or (lambda: ServedModelInfo(""))
        self.limits = limits
        # One thread, so that the calls of an update, and its commit, never overlap.
        self._updates = ThreadPoolExecutor(1, "archon-update")
        self._by_id: dict[str, list[Ticket]] = {}
        self._sequences: dict[str, int] = {}
        self._is_ending = False

    @property
    def record(self) -> ServerRecord:
        """The server with the version in use."""
        return ServerRecord(**{**vars(self._record), "version": self._weights.version})

    @property
    def state(self) -> ServerState:
        """The server's state."""
        return ServerState(
            incarnation=self._record.incarnation,
            version=self._weights.version,
            paused=self._decode.is_paused,
            prepared=self._weights.updates.prepared,
            updating=self._weights.updates.updating,
            running=self._decode.n_requests,
            tokens_per_second=round(self._decode.tokens_per_second, 1),
        )

    def submit(
        self,
        requests: Sequence[GenerationRequest],
        *,
        request_id: str = "",
        routed_experts: bool = False,
        on_tokens: OnTokens | None = None,
        call: int | None = None,
    ) -> list[Ticket]:
        """Start requests after checking all of them.

        Calls take turns at free rows. ``call`` is the number of the first ticket of the call that the requests belong
        to; ``None`` for a new one.

        Raises:
            UnavailableError: the server is ending, or has no weights.
            ConfigError, DataError, ModelError: see ``requests.check_requests``.
        """
        self._check_available()
        if self._decode_text is not None:
            requests = [replace(one, decode=self._decode_text) if one.config.stop else one for one in requests]
        check_requests(requests, self.limits)
        tickets = self._decode.submit(requests, records_experts=routed_experts, on_tokens=on_tokens, call=call)
        if request_id:
            self._by_id.setdefault(request_id, []).extend(tickets)
        return tickets

    def score(self, request: ScoringRequest) -> ScoringTicket:
        """Start a request for scores after checking it.

        Raises:
            UnavailableError: the server is ending, or has no weights.
            DataError, ModelError: see ``scoring.check_scoring``.
        """
        self._check_available()
        check_scoring(request, self.limits)
        return self._decode.score(request)

    async def describe_model(self) -> ServedModelInfo:
        """The model that the server was started with."""
        return await asyncio.get_running_loop().run_in_executor(None, self._describe)

    def _check_available(self) -> None:
        if self._is_ending:
            raise UnavailableError("the server is shutting down; send the request to another one")
        if not self._weights.is_usable:
            raise UnavailableError("the server has no weights yet; publish a version first")

    def forget(self, request_id: str) -> None:
        """Drop the id of a request that was answered."""
        self._by_id.pop(request_id, None)

    def cancel(self, tickets: Sequence[Ticket | ScoringTicket]) -> None:
        """End requests whose caller has gone."""
        unfinished = [ticket.number for ticket in tickets if not ticket.answer.done()]
        if unfinished:
            self._decode.abort(unfinished)

    def check_control(self, *, incarnation: str = "", caller: str = "", sequence: int = 0) -> None:
        """Refuse a control call that is meant for another incarnation, or that a later call has overtaken.

        A call whose client gave up may arrive much later, for instance when a stopped process continues. The client
        has then made other calls; executing the old one would leave the server in a state that nobody asked for.

        Raises:
            ConflictError: the call must not be executed.
        """
        own = self._record.incarnation
        if incarnation not in ("", own):
            raise ConflictError(f"control: found incarnation {incarnation}; this server is {own}; read /state again")
        if caller:
            latest = self._sequences.get(caller, -1)
            if sequence <= latest:
                raise ConflictError(
                    f"control: found call {sequence} of {caller} after its call {latest}; read /state again"
                )
            self._sequences[caller] = sequence

    async def abort(self, request_ids: Sequence[str] | None) -> None:
        """End requests; ``None`` ends all."""
        numbers = None
        if request_ids is not None:
            numbers = [ticket.number for name in request_ids for ticket in self._by_id.get(name, ())]
        await asyncio.wrap_future(self._decode.abort(numbers))

    async def pause(self, mode: PauseMode) -> None:
        """Stop generation."""
        await asyncio.wrap_future(self._decode.pause(mode))

    async def resume(self) -> None:
        """Continue generation."""
        await asyncio.wrap_future(self._decode.resume())

    async def begin_update(self, plan: UpdatePlan) -> None:
        """Start an update."""

        def begin() -> None:
            if self._receiving.n_ranks > 1:
                self._decode.build_copy().result()
            self._receiving.begin(plan)

        await self._in_order(begin)

    async def receive_bucket(self, notice: BucketNotice) -> Receipt:
        """Receive one bucket."""
        return await self._in_order(lambda: self._receiving.receive(notice))

    async def verify_update(self, manifest: WeightManifest) -> Receipt:
        """Check the received weights."""
        return await self._in_order(lambda: self._receiving.verify(manifest))

    async def commit_update(self, version: int) -> None:
        """Switch to the received weights between two steps."""
        before = self._weights.version

        def commit() -> None:
            self._weights.check_commit(version)
            self._decode.commit(version).result()

        await self._in_order(commit)
        stopped = self._decode.switch_seconds * 1000
        logger.info("weights: version %d -> %d (generation stopped for %.2f ms)", before, version, stopped)

    async def abort_update(self, version: int) -> None:
        """Drop the update to ``version``."""
        await self._in_order(lambda: self._receiving.abort(version))

    def end(self) -> int:
        """Refuse new requests; ends those of a paused server at once. Returns how many are still in progress."""
        self._is_ending = True
        if self._decode.is_paused:
            self.abandon()
            return 0
        return self._decode.n_requests

    def abandon(self) -> None:
        """End all requests with the tokens that they have."""
        self._decode.abort(None)

    async def _in_order(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._updates, work)


def error_data(error: Exception) -> dict[str, Any]:
    """The JSON object of an error, in OpenAI's form, which their clients show."""
    kind = "server_error" if isinstance(error, ServerError | UnavailableError) else "invalid_request_error"
    return error_body(str(error), kind)
