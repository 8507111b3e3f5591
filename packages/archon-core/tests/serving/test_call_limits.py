"""The time limit of a call covers all of it, however slowly a server answers."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from archon_core.errors import UncertainCallError
from archon_core.serving.http_client import call, exchange

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"


@pytest.fixture
def serving():
    """Starts a server that answers one call with these bytes, one by one after the first ``n_at_once``."""
    listener = socket.create_server(("127.0.0.1", 0))
    gone = threading.Event()

    def start(content, n_at_once, pause):
        def answer():
            with listener.accept()[0] as connection:
                connection.recv(2**16)
                connection.sendall(content[:n_at_once])
                try:
                    for byte in content[n_at_once:]:
                        time.sleep(pause)
                        connection.sendall(bytes([byte]))
                except OSError:
                    gone.set()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        threads.append(thread)
        return f"127.0.0.1:{listener.getsockname()[1]}"

    threads = []
    yield start, gone
    for thread in threads:
        thread.join(20)
    listener.close()


@pytest.mark.parametrize(
    ("content", "n_at_once"),
    [(HEAD + b"X: " + b"y" * 200 + b"\r\n\r\n{}", 20), (HEAD.replace(b": 2", b": 200") + b"\r\n" + b"9" * 200, 60)],
    ids=["head", "body"],
)
def test_an_answer_that_trickles_ends_at_the_limit_of_the_call(serving, content, n_at_once):
    start, gone = serving
    address = start(content, n_at_once, 0.01)
    with pytest.raises(UncertainCallError, match=f"server {address}: /state got no answer: timed out"):
        exchange(address, "GET", "/state", token="", timeout=0.2)
    assert gone.wait(20), "the server's connection was not closed"


def test_an_answer_in_pieces_arrives_within_the_limit(serving):
    start, _ = serving
    address = start(HEAD + b"\r\n{}", 30, 0.001)
    assert call(address, "GET", "/state", token="", timeout=20) == {}
