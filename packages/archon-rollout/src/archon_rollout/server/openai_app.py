"""OpenAI's routes: ``/v1/completions``, ``/v1/chat/completions``, with or without events, and ``/v1/models``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from archon_core.contracts.rollout import Completion
from archon_core.errors import ArchonError
from archon_core.serving.openai_answers import LAST_EVENT, Answer, Piece, event_line
from archon_rollout.decode_rows import NewToken
from archon_rollout.server.app import answers_errors, completions_of, disconnected, read_json
from archon_rollout.server.decode_thread import Ticket
from archon_rollout.server.openai_text import TextSide, TextStream
from archon_rollout.server.openai_wire import TextCall, parse_chat, parse_completion
from archon_rollout.server.service import Service, error_data


def openai_routes(service: Service, text: TextSide) -> list[Route]:
    """The routes."""

    async def models(_: Request) -> Response:
        entry = {"id": text.name, "object": "model", "created": int(service.record.started_at), "owned_by": "archon"}
        return JSONResponse({"object": "list", "data": [entry]})

    def completing(parse: Callable[[Any, TextSide], TextCall]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            call = parse(await read_json(request), text)
            if call.streams:
                return _events(service, text, call)
            pieces = await _pieces(request, service, text, call)
            return JSONResponse(_answer(text, call).whole(pieces))

        return answers_errors(answer)

    return [
        Route("/v1/models", answers_errors(models)),
        Route("/v1/completions", completing(parse_completion), methods=["POST"]),
        Route("/v1/chat/completions", completing(parse_chat), methods=["POST"]),
    ]


async def _pieces(request: Request, service: Service, text: TextSide, call: TextCall) -> list[Piece]:
    """One piece per choice."""
    if call.stops:
        whole: dict[int, Piece] = {}
        async for new in _Generation(service, text, call).pieces(request):
            piece = whole.setdefault(new.index, Piece(new.index, ""))
            piece.text += new.text
            piece.token_ids = [*piece.token_ids, *new.token_ids]
            piece.logprobs = [*piece.logprobs, *new.logprobs]
            piece.end, piece.versions = new.end, new.versions
        return [whole[index] for index in sorted(whole)]
    tickets = service.submit(call.requests)
    completions = [one for samples in await completions_of(request, service, tickets) for one in samples]
    return [
        Piece(index, _text_of(text, one), one.token_ids, one.logprobs, one.stop_reason, one.versions)
        for index, one in enumerate(completions)
    ]


def _text_of(text: TextSide, completion: Completion) -> str:
    is_stop = completion.stop_reason == "stop"
    return text.decode(completion.token_ids[:-1] if is_stop else completion.token_ids)


class _Generation:
    """A call whose tokens are observed as they arrive. Started by the constructor, so that errors come first."""

    def __init__(self, service: Service, text: TextSide, call: TextCall) -> None:
        self._service = service
        self._events: asyncio.Queue[tuple[int, list[NewToken] | Future[list[Completion]]]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._streams: dict[tuple[int, int], TextStream] = {}
        self._first_choice: dict[int, int] = {}
        self._tickets: dict[int, Ticket] = {}
        choice = 0
        for place, request in enumerate(call.requests):
            self._first_choice[place] = choice
            choice += len(request.seeds)
            for number in range(len(request.seeds)):
                self._streams[place, number] = TextStream(text, call.stops)
            call_number = self._tickets[0].number if place else None
            [self._tickets[place]] = service.submit([request], on_tokens=self._sender(place), call=call_number)
            self._tickets[place].completions.add_done_callback(self._sender(place))

    async def pieces(self, request: Request | None = None) -> AsyncIterator[Piece]:
        """The pieces of all choices. Closing the iterator aborts what is unfinished.

        Raises:
            ClientDisconnect: the caller of ``request`` closed the connection.
        """
        remaining = set(self._tickets)
        gone = asyncio.ensure_future(disconnected(request)) if request is not None else None
        try:
            while remaining:
                place, event = await self._next_event(gone)
                if isinstance(event, Future):
                    remaining.discard(place)
                    for number, completion in enumerate(event.result()):
                        if piece := self._last(place, number, completion):
                            yield piece
                    continue
                for new in event:
                    stream = self._streams[place, new.sample.number]
                    if stream.is_stopped:
                        continue
                    added = stream.add([new.token_id])
                    yield Piece(self._index(place, new.sample.number), added, [new.token_id], [new.logprob])
                    if stream.is_stopped:
                        self._service.cancel([self._tickets[place]])
        finally:
            if gone is not None:
                gone.cancel()
            self._service.cancel([*self._tickets.values()])

    async def _next_event(self, gone: asyncio.Future[None] | None) -> tuple[int, Any]:
        """The next event. Raises ClientDisconnect if ``gone`` is done before it."""
        if gone is None:
            return await self._events.get()
        event = asyncio.ensure_future(self._events.get())
        try:
            await asyncio.wait((event, gone), return_when=asyncio.FIRST_COMPLETED)
            if not event.done():
                raise ClientDisconnect
            return event.result()
        finally:
            event.cancel()

    def _last(self, place: int, number: int, completion: Completion) -> Piece:
        stream = self._streams[place, number]
        seen = stream.n_tokens
        ids, end = completion.token_ids, completion.stop_reason
        if not stream.is_stopped:
            # A token that ends a completion is not part of its text.
            text = stream.add(ids[seen:-1] if end == "stop" else ids[seen:], is_last=True)
            new, shown = slice(seen, None), slice(None)
        else:  # the server generated more until the request was cancelled
            text, new, shown = "", slice(0, 0), slice(seen)
        if stream.is_stopped:
            end = "stop"
        logprobs, versions = completion.logprobs[new], completion.versions[shown]
        return Piece(self._index(place, number), text, ids[new], logprobs, end, versions)

    def _index(self, place: int, number: int) -> int:
        return self._first_choice[place] + number

    def _sender(self, place: int) -> Callable[[Any], None]:
        return lambda event: self._loop.call_soon_threadsafe(self._events.put_nowait, (place, event))


def _events(service: Service, text: TextSide, call: TextCall) -> Response:
    generation, answer = _Generation(service, text, call), _answer(text, call)

    async def lines() -> AsyncIterator[str]:
        n_tokens = 0
        try:
            if call.is_chat:
                for index in range(sum(len(request.seeds) for request in call.requests)):
                    yield answer.opening(index)
            async for piece in generation.pieces():
                n_tokens += len(piece.token_ids)
                yield answer.part(piece)
            if call.includes_usage:
                yield answer.usage(n_tokens)
        except ArchonError as error:
            yield event_line(error_data(error))
        yield LAST_EVENT

    return StreamingResponse(lines(), media_type="text/event-stream")


def _answer(text: TextSide, call: TextCall) -> Answer:
    return Answer(
        text.name,
        is_chat=call.is_chat,
        n_prompt_tokens=call.n_prompt_tokens,
        decode=text.decode,
        logprobs=call.logprobs,
    )
