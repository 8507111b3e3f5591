"""JSON over HTTP/1.1 for drivers of servers: blocking calls, and a coroutine for requests that take long.

Every call has a time limit and its own connection. A call without an answer is uncertain: the server may have executed
it, or execute it later.
"""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Sequence
from typing import Any

from archon_core.errors import (
    NoDescriptorError,
    RefusedRequestError,
    ServerError,
    UncertainCallError,
    UnreachableError,
)
from archon_core.serving.descriptors import EXHAUSTED

LONGEST_ERROR = 500
"""Characters to quote of an answer that is not JSON."""


def call(address: str, method: str, path: str, data: Any = None, *, token: str, timeout: float) -> Any:
    """Send a request and wait for the answer.

    Args:
        address: ``host:port``.
        method: ``GET`` or ``POST``.
        path: the path.
        data: the JSON body; ``None`` for none.
        token: the server's token; empty for none.
        timeout: limit of every wait for the network, in seconds.

    Raises:
        ServerError: the server cannot be reached, or answered something invalid.
        NoDescriptorError: this process cannot open a connection.
        RefusedRequestError: it refused the request because of its content.
        UncertainCallError: there was no complete answer.
    """
    status, content = exchange(address, method, path, data, token=token, timeout=timeout)
    return _answer(address, path, status, content)


def exchange(
    address: str, method: str, path: str, data: Any = None, *, token: str, timeout: float
) -> tuple[int, bytes]:
    """``call`` that returns the status and body of any answer, for routes that answer by their status.

    Raises:
        UnreachableError: the server accepts no connection.
        NoDescriptorError: this process cannot open one.
        UncertainCallError: there was no complete answer.
    """
    connection = http.client.HTTPConnection(*_split(address), timeout=timeout)
    try:
        try:
            connection.connect()
        except OSError as error:
            raise _not_connected(address, error) from error
        try:
            connection.request(method, path, body=_encode(data), headers=_headers(token))
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise UncertainCallError(f"server {address}: {path} got no answer: {_text(error)}") from error
    finally:
        connection.close()


async def call_async(address: str, path: str, data: Any, *, token: str, timeout: float) -> Any:
    """``call`` with ``POST``, as a coroutine. Cancelling it closes the connection, on which our servers abort."""
    host, port = _split(address)
    try:
        async with asyncio.timeout(timeout):
            try:
                reader, writer = await asyncio.open_connection(host, port)
            except OSError as error:
                raise _not_connected(address, error) from error
            try:
                body = _encode(data) or b""
                headers = {**_headers(token), "Host": address, "Content-Length": str(len(body)), "Connection": "close"}
                lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
                writer.write("\r\n".join(lines).encode() + body)
                await writer.drain()
                status, content = await _read(reader)
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise UncertainCallError(f"server {address}: {path} got no answer: {_text(error)}") from error
    except (ValueError, IndexError, asyncio.LimitOverrunError) as error:
        raise UncertainCallError(f"server {address}: {path} got an answer that is no HTTP: {_text(error)}") from error
    return _answer(address, path, status, content)


async def call_each(address: str, path: str, bodies: Sequence[Any], *, token: str, timeout: float) -> list[Any]:
    """The answers to several ``POST`` requests that run at the same time. If one fails, the others' connections are
    closed, on which servers end the requests."""
    tasks = [asyncio.ensure_future(call_async(address, path, body, token=token, timeout=timeout)) for body in bodies]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def field_of(answer: Any, name: str, *, address: str, path: str) -> Any:
    """A field of a server's answer.

    Raises:
        ServerError: the answer is no JSON object, or lacks the field, such as that of another program at the address.
    """
    if not isinstance(answer, dict) or name not in answer:
        quoted = json.dumps(answer)[:LONGEST_ERROR]
        raise ServerError(f"server {address}: {path} answered {quoted}, without {name!r}; check the address")
    return answer[name]


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of an answer: of known length as our servers send it, or in chunks or without a length, as
    proxies may do.

    Raises:
        ValueError, IndexError, asyncio.LimitOverrunError: it is no HTTP.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split()[1])
    fields = {name.strip(): value.strip() for name, _, value in (line.lower().partition(":") for line in head[1:])}
    if fields.get("transfer-encoding", "identity") != "identity":
        return status, await _read_chunks(reader)
    if "content-length" in fields:
        return status, await reader.readexactly(int(fields["content-length"]))
    return status, await reader.read()


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A body in the transfer coding ``chunked`` (RFC 9112, section 7.1), without its trailer."""
    content = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        content += await reader.readexactly(size)
        await reader.readexactly(2)
    return bytes(content)


def _not_connected(address: str, error: OSError) -> ServerError:
    if error.errno in EXHAUSTED:
        return NoDescriptorError(
            f"server {address}: cannot connect, because this process or machine has too many open files; raise the "
            "hard limit (ulimit -Hn)"
        )
    return UnreachableError(f"server {address}: cannot connect: {error}")


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _encode(data: Any) -> bytes | None:
    return None if data is None else json.dumps(data, separators=(",", ":")).encode()


def _headers(token: str) -> dict[str, str]:
    return {**({"Authorization": f"Bearer {token}"} if token else {}), "Content-Type": "application/json"}


def _answer(address: str, path: str, status: int, content: bytes) -> Any:
    try:
        data = json.loads(content)
    except ValueError as error:
        quoted = content[:LONGEST_ERROR].decode(errors="replace")
        raise ServerError(f"server {address}: {path} answered {status} without JSON: {quoted!r}") from error
    if status >= 400:
        found = data.get("error") if isinstance(data, dict) else None
        message = found.get("message") if isinstance(found, dict) else data
        kind = RefusedRequestError if status == 400 else ServerError
        raise kind(f"server {address}: {path} answered {status}: {message}")
    return data


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
