"""OpenAI's routes: ``/v1/completions``, ``/v1/chat/completions``, with or without events, and ``/v1/models``.

Beside OpenAI's fields, choices have ``token_ids`` and ``weight_versions``, as vLLM's have.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from archon_core.contracts.rollout import Completion
from archon_core.errors import ArchonError
from archon_core.serving.token_versions import spans_of
from archon_core.serving.wire import to_data
from archon_rollout.decode_rows import NewToken
from archon_rollout.server.app import answers_errors, completions_of, disconnected, read_json
from archon_rollout.server.decode_thread import Ticket
from archon_rollout.server.openai_text import TextSide, TextStream
from archon_rollout.server.openai_wire import TextCall, parse_chat, parse_completion
from archon_rollout.server.service import Service, error_data


@dataclass
class Piece:
    """New tokens of one choice.

    Attributes:
        index: of the choice.
        text: new text.
        token_ids, logprobs: of the new tokens.
        end: the finish reason, in the last piece; empty before.
        versions: of all tokens, in the last piece.
    """

    index: int
    text: str
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    end: str = ""
    versions: Sequence[int] = field(default=())


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
            return JSONResponse(_Answer(text, call).whole(pieces))

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
            new = slice(seen, None)
        else:
            text, new = "", slice(0, 0)
        if stream.is_stopped:
            end = "stop"
        return Piece(self._index(place, number), text, ids[new], completion.logprobs[new], end, completion.versions)

    def _index(self, place: int, number: int) -> int:
        return self._first_choice[place] + number

    def _sender(self, place: int) -> Callable[[Any], None]:
        return lambda event: self._loop.call_soon_threadsafe(self._events.put_nowait, (place, event))


def _events(service: Service, text: TextSide, call: TextCall) -> Response:
    generation, answer = _Generation(service, text, call), _Answer(text, call)

    async def lines() -> AsyncIterator[str]:
        n_tokens = 0
        try:
            if call.is_chat:
                for index in range(sum(len(request.seeds) for request in call.requests)):
                    yield answer.event(answer.opening(index))
            async for piece in generation.pieces():
                n_tokens += len(piece.token_ids)
                yield answer.event(answer.part(piece))
            if call.includes_usage:
                yield answer.event({**answer.envelope(is_event=True), "choices": [], "usage": answer.usage(n_tokens)})
        except ArchonError as error:
            yield answer.event(error_data(error))
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


class _Answer:
    """The JSON objects of one answer."""

    def __init__(self, text: TextSide, call: TextCall) -> None:
        self._text = text
        self._call = call
        self._id = f"{'chatcmpl' if call.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def envelope(self, *, is_event: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self._call.is_chat:
            kind = "chat.completion.chunk" if is_event else "chat.completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._text.name}

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        n_tokens = sum(len(piece.token_ids) for piece in pieces)
        choices = [self._choice(piece, is_event=False) for piece in pieces]
        return {**self.envelope(is_event=False), "choices": choices, "usage": self.usage(n_tokens)}

    def part(self, piece: Piece) -> dict[str, Any]:
        return {**self.envelope(is_event=True), "choices": [self._choice(piece, is_event=True)]}

    def opening(self, index: int) -> dict[str, Any]:
        """The first event of a chat's choice."""
        choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return {**self.envelope(is_event=True), "choices": [choice]}

    def usage(self, n_tokens: int) -> dict[str, int]:
        n_prompt = self._call.n_prompt_tokens
        return {"prompt_tokens": n_prompt, "completion_tokens": n_tokens, "total_tokens": n_prompt + n_tokens}

    def event(self, data: dict[str, Any]) -> str:
        return f"data: {json.dumps(data)}\n\n"

    def _choice(self, piece: Piece, *, is_event: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": piece.index, "finish_reason": piece.end or None}
        if not self._call.is_chat:
            choice["text"] = piece.text
        elif is_event:
            choice["delta"] = {"content": piece.text}
        else:
            choice["message"] = {"role": "assistant", "content": piece.text}
        choice["logprobs"] = self._logprobs(piece) if self._call.logprobs else None
        choice["token_ids"] = list(piece.token_ids)
        if piece.end:
            choice["weight_versions"] = [to_data(span) for span in spans_of(piece.versions)]
        return choice

    def _logprobs(self, piece: Piece) -> dict[str, Any]:
        tokens = [self._text.decode([token]) for token in piece.token_ids]
        if self._call.is_chat:
            entries = [
                {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}
                for token, logprob in zip(tokens, piece.logprobs, strict=True)
            ]
            return {"content": entries}
        return {"tokens": tokens, "token_logprobs": list(piece.logprobs), "top_logprobs": None, "text_offset": []}
