"""The collector's HTTP interface for agents: OpenAI's chat completions per session, rewards, and starts from outside.

A session's base URL is ``/sessions/ID/v1``. Its key alone also finds it, under ``/v1``. Completions arrive whole from
the inference servers, so a streamed answer sends its events together.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from archon_core.errors import ArchonError, DataError, ServerError
from archon_core.serving.fields import check_fields
from archon_core.serving.openai_answers import LAST_EVENT, Answer, Piece, error_body
from archon_rl.agents.chat_requests import ChatRequest, TooLongError, parse_chat
from archon_rl.agents.directory import NoPlaceError, SessionDirectory
from archon_rl.agents.errors import SessionError
from archon_rl.agents.session import Session

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
ROUTES = "/v1/chat/completions, /v1/models, /rl/start_session, /rl/set_reward and /rl/end_session"

Handler = Callable[[Request], Awaitable[Response]]
Rewarded = Callable[[Session, bool], None]
"""Called after a reward of a session; the flag says whether it is the reward of one answer."""


class KeyRefusedError(ArchonError):
    """A request with another key."""


def build_app(directory: SessionDirectory, *, admin_key: str = "", rewarded: Rewarded | None = None) -> Starlette:
    """The application.

    Args:
        directory: the sessions.
        admin_key: starts sessions from outside; empty for a run that starts its agents itself.
        rewarded: see ``Rewarded``.
    """

    def session_of(request: Request) -> Session:
        found = directory.find(key=_key(request), session_id=request.path_params.get("session", ""))
        if found is None:
            raise KeyRefusedError("found no running session with this API key; use the key and base URL of a session")
        return found

    async def models(request: Request) -> Response:
        session_of(request)
        entry = {"id": "default", "object": "model", "created": 0, "owned_by": "archon"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def chat(request: Request) -> Response:
        session = session_of(request)
        parsed = parse_chat(await _json(request), session.parts.repeatable)
        answer, piece = await _unless_disconnected(request, session.answer(parsed))
        if parsed.streams:
            return StreamingResponse(_events(parsed, answer, piece), media_type="text/event-stream")
        return JSONResponse(answer.whole([piece]))

    async def set_reward(request: Request) -> Response:
        session = session_of(request)
        known = {"reward": float, "interaction_id": str | None}
        body = check_fields(await _json(request), known, where="set_reward", required=("reward",))
        if not math.isfinite(body["reward"]):
            raise DataError(f"set_reward: reward: found {body['reward']}; allowed are finite numbers")
        session.give_reward(float(body["reward"]), body.get("interaction_id"))
        if rewarded is not None:
            rewarded(session, body.get("interaction_id") is not None)
        return JSONResponse({"session_id": session.id})

    async def end_session(request: Request) -> Response:
        session = session_of(request)
        session.end()
        return JSONResponse({"session_id": session.id})

    async def start_session(request: Request) -> Response:
        if not admin_key or not hmac.compare_digest(_key(request).encode(), admin_key.encode()):
            raise KeyRefusedError("found another key than rollout.agent.admin_api_key, which starts sessions")
        body = check_fields(await _json(request), {"task_id": str | None}, where="start_session")
        session, record = directory.start(body.get("task_id") or "")
        answer = {
            "session_id": session.id,
            "api_key": session.key,
            "base_url": f"{str(request.base_url).rstrip('/')}{session_path(session)}",
            "data": json.loads(json.dumps(dict(record), default=str)),
        }
        return JSONResponse(answer)

    routes = [
        Route(f"{prefix}{path}", _answers_errors(handler), methods=[method])
        for prefix in ("/sessions/{session}/v1", "/v1")
        for path, handler, method in (("/models", models, "GET"), ("/chat/completions", chat, "POST"))
    ]
    for path, handler in (("start_session", start_session), ("set_reward", set_reward), ("end_session", end_session)):
        routes.append(Route(f"/rl/{path}", _answers_errors(handler), methods=["POST"]))
    return Starlette(routes=routes, exception_handlers={HTTPException: _unknown_path})


def session_path(session: Session) -> str:
    """Path of a session's base URL."""
    return f"/sessions/{session.id}/v1"


async def _events(request: ChatRequest, answer: Answer, piece: Piece) -> AsyncIterator[str]:
    yield answer.opening(piece.index)
    yield answer.part(piece)
    if request.includes_usage:
        yield answer.usage(len(piece.token_ids))
    yield LAST_EVENT


def _key(request: Request) -> str:
    return request.headers.get("authorization", "").removeprefix("Bearer ")


async def _json(request: Request) -> Any:
    content = await request.body()
    try:
        return json.loads(content or b"{}")
    except ValueError as error:
        raise DataError(f"request body: found no JSON ({error}); send a JSON object") from error


async def _unless_disconnected(request: Request, answering: Awaitable[Any]) -> Any:
    """The result of a coroutine. Cancels it if the caller closes the connection.

    Raises:
        ClientDisconnect: it did.
    """
    answer, gone = asyncio.ensure_future(answering), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        gone.cancel()
        if not answer.done():
            answer.cancel()
            with contextlib.suppress(asyncio.CancelledError, ArchonError):
                await answer


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answers_errors(handler: Handler) -> Handler:
    """Turn errors of a handler into responses that OpenAI's clients raise. They repeat 5xx by themselves."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except TooLongError as error:
            return _refused(400, error, "invalid_request_error", "context_length_exceeded")
        except KeyRefusedError as error:
            return _refused(401, error, "invalid_request_error", "invalid_api_key")
        except SessionError as error:
            return _refused(403, error, "invalid_request_error", "session_ended")
        except NoPlaceError as error:
            return _refused(429, error, "rate_limit_error", "no_waiting_sample")
        except ServerError as error:
            return _refused(503, error, "server_error")
        except ArchonError as error:
            return _refused(400, error, "invalid_request_error")
        except Exception as error:
            logger.exception("%s failed", request.url.path)
            return _refused(500, ServerError(f"{type(error).__name__}: {error}"), "server_error")

    return answer


def _refused(status: int, error: Exception, kind: str, code: str | None = None) -> Response:
    return JSONResponse(error_body(str(error), kind, code), status)


def _unknown_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = error.detail
    if error.status_code == 404:
        text = f"found no path {request.url.path}; the collector has {ROUTES}; see docs/agents.md"
    return JSONResponse(error_body(text, "invalid_request_error"), error.status_code)
