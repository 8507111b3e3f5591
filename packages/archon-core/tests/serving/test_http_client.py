"""Connections that are used again, and answers that no server of a known kind would give, such as a proxy's."""

from __future__ import annotations

import asyncio
import warnings

import pytest

from archon_core.errors import ServerError, UncertainCallError
from archon_core.serving import connections
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


def calls_of(n_calls: int, answers, *, together: bool = False) -> tuple[list[object], list[int]]:
    """The results of calls in one event loop, and the requests that each connection of the server got.

    Args:
        answers: (number of the request) -> the bytes to answer, and whether to close the connection then; ``None`` to
            never answer.
    """
    requests: list[int] = []
    results: list[object] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        place = len(requests)
        requests.append(0)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
                number = sum(requests)
                requests[place] += 1
                answer, ends = answers(number)
                if answer is not None:
                    writer.write(answer)
                if ends:
                    return
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async def call(address: str) -> None:
        try:
            results.append(await call_async(address, "/generate", {"n": 1}, token="", timeout=0.5))
        except ServerError as error:
            results.append(type(error))

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            if together:
                await asyncio.gather(*(call(address) for _ in range(n_calls)))
            else:
                for _ in range(n_calls):
                    await call(address)
                    await asyncio.sleep(0.01)  # the server's end of a connection arrives

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        asyncio.run(run())
    return results, requests


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def test_calls_one_after_the_other_share_a_connection() -> None:
    assert calls_of(3, lambda number: (OK, False)) == ([{}] * 3, [3])
    assert calls_of(3, lambda number: (OK, False), together=True) == ([{}] * 3, [1, 1, 1])


def test_a_connection_that_the_server_ends_is_not_used_again() -> None:
    said = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    assert calls_of(2, lambda number: (said, True)) == ([{}] * 2, [1, 1])
    assert calls_of(2, lambda number: (OK, True)) == ([{}] * 2, [1, 1])
    assert calls_of(2, lambda number: (OK.replace(b"1.1", b"1.0"), False)) == ([{}] * 2, [1, 1])


def test_an_answer_that_comes_too_late_belongs_to_no_other_call() -> None:
    results, requests = calls_of(3, lambda number: (None if number == 1 else OK, False))
    assert (results, requests) == ([{}, UncertainCallError, {}], [2, 1])


def test_an_idle_connection_is_not_used_after_its_time(monkeypatch) -> None:
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.0)
    assert calls_of(2, lambda number: (OK, False)) == ([{}] * 2, [1, 1])
