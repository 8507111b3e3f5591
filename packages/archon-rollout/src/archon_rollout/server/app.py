"""The HTTP interface of a server: its own routes, the bearer token, and errors.

``/health`` answers without a token and only says that the process lives. A one-token request to ``/generate`` or
``/v1/completions`` shows that the server works.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, get_args

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from archon_core.contracts.rollout import Completion
from archon_core.errors import ArchonError, DataError, ServerError
from archon_core.serving.fields import check_fields
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.record import PauseMode
from archon_core.serving.scores import Scores
from archon_core.serving.update import BucketNotice, UpdatePlan
from archon_core.serving.wire import to_data
from archon_rollout.server.decode_thread import ScoringTicket, Ticket
from archon_rollout.server.service import ConflictError, Service, UnavailableError, error_data
from archon_rollout.server.weight_copies import OtherModelError
from archon_rollout.server.wire import completion_data, parse_generate, parse_score

logger = logging.getLogger(__name__)

OPEN_PATHS = ("/health",)
CLIENT_CLOSED_REQUEST = 499
CONTROL_FIELDS = {"incarnation": str, "caller": str, "sequence": int}

Handler = Callable[[Request], Awaitable[Response]]


def build_app(service: Service, *, token: str, more_routes: Sequence[Route] = ()) -> ASGIApp:
    """The application.

    Args:
        service: the server.
        token: required in every request, as ``Authorization: Bearer <token>``, except to ``OPEN_PATHS``.
        more_routes: such as OpenAI's.
    """
    app = Starlette(
        routes=[*_own_routes(service), *more_routes],
        exception_handlers={
            HTTPException: lambda _, error: JSONResponse(
                error_data(DataError(_explain_status(error))), error.status_code
            ),
        },
    )
    return RequireToken(app, token)


class RequireToken:
    """Refuses requests without the server's token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                found = "another token" if given else "no token"
                text = f"found {found}; send the header 'Authorization: Bearer TOKEN' with the server's token"
                await JSONResponse(error_data(DataError(text)), 401)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def answers_errors(handler: Handler) -> Handler:
    """Turn errors of a handler into responses with a message."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except UnavailableError as error:
            return JSONResponse(error_data(error), 503)
        except (ConflictError, OtherModelError) as error:
            return JSONResponse(error_data(error), 409)
        except ServerError as error:
            return JSONResponse(error_data(error), 500)
        except ArchonError as error:
            return JSONResponse(error_data(error), 400)
        except Exception as error:
            logger.exception("%s failed", request.url.path)
            return JSONResponse(error_data(ServerError(f"{type(error).__name__}: {error}")), 500)

    return answer


async def read_json(request: Request) -> Any:
    """The body of a request. Raises DataError if it is not JSON."""
    content = await request.body()
    try:
        return json.loads(content)
    except ValueError as error:
        raise DataError(f"request body: found no JSON ({error}); send a JSON object") from error


async def completions_of(request: Request, service: Service, tickets: Sequence[Ticket]) -> list[list[Completion]]:
    """The completions of every ticket. Aborts them if the caller closes the connection.

    Raises:
        ClientDisconnect: it did.
    """
    return await _answers(request, service, tickets)


async def scores_of(request: Request, service: Service, ticket: ScoringTicket) -> Scores:
    """The scores of a ticket. Drops the request if the caller closes the connection.

    Raises:
        ClientDisconnect: it did.
    """
    [scores] = await _answers(request, service, [ticket])
    return scores


async def _answers(request: Request, service: Service, tickets: Sequence[Any]) -> list[Any]:
    results = asyncio.gather(*(asyncio.wrap_future(ticket.answer) for ticket in tickets))
    # Nobody awaits it after a disconnect; asyncio logs an exception that nobody has looked at, with a traceback.
    results.add_done_callback(lambda done: done.cancelled() or done.exception())
    gone = asyncio.ensure_future(disconnected(request))
    try:
        await asyncio.wait((results, gone), return_when=asyncio.FIRST_COMPLETED)
        if not results.done():
            raise ClientDisconnect
        return await results
    finally:
        gone.cancel()
        if not results.done():
            results.cancel()
        service.cancel(tickets)


async def disconnected(request: Request) -> None:
    """Return when the caller closes the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _own_routes(service: Service) -> list[Route]:
    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def state(_: Request) -> Response:
        return JSONResponse({**service.state.as_data(), "record": service.record.as_data()})

    async def generate(request: Request) -> Response:
        call = parse_generate(await read_json(request))
        tickets = service.submit(call.requests, request_id=call.request_id, routed_experts=call.routed_experts)
        try:
            results = await completions_of(request, service, tickets)
        finally:
            service.forget(call.request_id)
        answer = {
            "incarnation": service.record.incarnation,
            "results": [[completion_data(completion) for completion in samples] for samples in results],
        }
        return JSONResponse(answer)

    async def score(request: Request) -> Response:
        ticket = service.score(parse_score(await read_json(request)))
        scores = await scores_of(request, service, ticket)
        return JSONResponse({"incarnation": service.record.incarnation, **to_data(scores)})

    async def model(_: Request) -> Response:
        return JSONResponse((await service.describe_model()).as_data())

    async def pause(data: dict[str, Any]) -> None:
        mode = data.get("mode", "keep")
        if mode not in get_args(PauseMode):
            raise DataError(f"pause: mode: found {mode!r}; allowed are {', '.join(get_args(PauseMode))}")
        await service.pause(mode)
        logger.info("paused (%s)", mode)

    async def resume(_: dict[str, Any]) -> None:
        await service.resume()
        logger.info("resumed")

    async def abort(data: dict[str, Any]) -> None:
        await service.abort(data.get("request_ids"))

    async def begin(data: dict[str, Any]) -> None:
        await service.begin_update(UpdatePlan.from_data(data["plan"]))

    async def bucket(data: dict[str, Any]) -> Any:
        return (await service.receive_bucket(BucketNotice.from_data(data["notice"]))).as_data()

    async def verify(data: dict[str, Any]) -> Any:
        return (await service.verify_update(WeightManifest.from_data(data["manifest"]))).as_data()

    async def commit(data: dict[str, Any]) -> None:
        await service.commit_update(data["version"])

    async def drop(data: dict[str, Any]) -> None:
        await service.abort_update(data["version"])

    def control(path: str, run: Callable[[dict[str, Any]], Awaitable[Any]], **known: Any) -> Route:
        """A route that changes the server; answers with its result, or with the state."""
        required = [name for name in known if name not in ("mode", "request_ids")]

        async def answer(request: Request) -> Response:
            where = path.strip("/")
            data = await read_json(request) if await request.body() else {}
            data = check_fields(data, CONTROL_FIELDS | known, where=where, required=required)
            service.check_control(**{name: data[name] for name in CONTROL_FIELDS if name in data})
            result = await run(data)
            return JSONResponse(service.state.as_data() if result is None else result)

        return Route(path, answers_errors(answer), methods=["POST"])

    return [
        Route("/health", health),
        Route("/state", answers_errors(state)),
        Route("/model", answers_errors(model)),
        Route("/generate", answers_errors(generate), methods=["POST"]),
        Route("/score", answers_errors(score), methods=["POST"]),
        control("/pause", pause, mode=str),
        control("/resume", resume),
        control("/abort", abort, request_ids=list[str] | None),
        control("/update/begin", begin, plan=dict),
        control("/update/bucket", bucket, notice=dict),
        control("/update/verify", verify, manifest=dict),
        control("/update/commit", commit, version=int),
        control("/update/abort", drop, version=int),
    ]


def _explain_status(error: HTTPException) -> str:
    if error.status_code == 404:
        return "found no such path; see docs/rollout.md for the server's routes"
    return error.detail
