"""Answers that no server of a known kind would give: of proxies, of other programs, of crashed servers."""

from __future__ import annotations

import asyncio

import pytest

from archon_core.errors import ServerError, UncertainCallError
from archon_core.serving.http_client import call_async, field_of


def call_with_answer(content: bytes):
    """The result of a call that gets ``content`` for an answer."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(content)
        writer.close()

    async def call():
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await call_async(f"127.0.0.1:{port}", "/generate", {}, token="", timeout=20.0)

    return asyncio.run(call())


def test_a_body_in_chunks_and_one_without_a_length_are_read() -> None:
    chunks = b'5\r\n{"a":\r\n3;name=value\r\n 1}\r\n0\r\n\r\n'
    assert call_with_answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding:chunked\r\n\r\n" + chunks) == {"a": 1}
    assert call_with_answer(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"a": 1}') == {"a": 1}


def test_an_error_page_of_a_proxy_is_an_error_of_the_server() -> None:
    with pytest.raises(ServerError, match="answered 502 without JSON: '<html>'"):
        call_with_answer(b"HTTP/1.1 502 Bad Gateway\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n<html>\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "content",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + 70_000 * b"x" + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        b"",
    ],
    ids=["another protocol", "a long header", "no length", "no chunk", "half a body", "nothing"],
)
def test_what_is_no_whole_answer_is_uncertain(content: bytes) -> None:
    with pytest.raises(UncertainCallError, match=r"got an answer that is no HTTP|got no answer"):
        call_with_answer(content)


@pytest.mark.parametrize("answer", [[], {"other": 1}, None])
def test_a_missing_field_is_an_error_of_the_server(answer) -> None:
    assert field_of({"a": None}, "a", address="h:1", path="/x") is None
    with pytest.raises(ServerError, match=r"server h:1: /x answered .*, without 'a'"):
        field_of(answer, "a", address="h:1", path="/x")
