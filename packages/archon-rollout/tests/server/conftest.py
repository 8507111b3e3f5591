"""A server around the tiny decoder: its loop alone, or behind HTTP in a thread of this process."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import uvicorn

from archon_core.errors import ServerError
from archon_core.ranks.ranks import Ranks
from archon_core.serving.record import ServerRecord
from archon_rollout.model_limits import model_limits
from archon_rollout.server.app import build_app
from archon_rollout.server.decode_thread import DecodeThread
from archon_rollout.server.openai_app import openai_routes
from archon_rollout.server.openai_text import TextSide
from archon_rollout.server.rank_updates import RankUpdates
from archon_rollout.server.service import Service
from archon_rollout.server.serving_loop import ServingLoop

TOKEN = "secret"


class FakeWeights:
    """Versions of the tiny decoder; a commit needs no transfer. It stands for ``ServedWeights``."""

    def __init__(self, tiny, dtype=torch.float64, **sizes) -> None:
        self.trainers = {v: tiny.Trainer(tiny.Decoder(seed=v, **sizes).to(dtype), v) for v in (5, 6, 7)}
        self.version = 5
        self.is_usable = True
        self.updates = SimpleNamespace(commit=self._commit, prepared=None, updating=None)

    @property
    def active(self):
        return self.trainers[self.version]

    def check_commit(self, version: int) -> None:
        if version not in self.trainers:
            raise ServerError(f"commit of version {version}: found no such update")

    def _commit(self, version: int) -> None:
        self.version = version


class Client:
    """Requests to the server of a test."""

    def __init__(self, port: int, token: str = TOKEN) -> None:
        self.port = port
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def open(self, method: str, path: str, data=None) -> http.client.HTTPConnection:
        """A connection with a request on its way."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = data if data is None or isinstance(data, str | bytes) else json.dumps(data)
        connection.request(method, path, body=body, headers=self._headers)
        return connection

    def text(self, method: str, path: str, data=None) -> tuple[int, str]:
        connection = self.open(method, path, data)
        response = connection.getresponse()
        content = response.read().decode()
        connection.close()
        return response.status, content

    def post(self, path: str, data=None):
        status, content = self.text("POST", path, data)
        return status, json.loads(content)

    def get(self, path: str):
        status, content = self.text("GET", path)
        return status, json.loads(content)


@contextmanager
def serving(weights, *, text=None, max_rows: int = 8, max_positions: int = 64):
    """A server on a free port; yields its client, service and decode thread."""
    limits = replace(model_limits(weights.active.module), max_positions=max_positions)
    failures: list[BaseException] = []
    decode = DecodeThread(ServingLoop(weights, max_rows=max_rows), Ranks(), on_failure=failures.append)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)  # requests wait until the server accepts them
    port = listener.getsockname()[1]
    record = ServerRecord(f"127.0.0.1:{port}", "this-start", "served", version=weights.version)
    service = Service(decode, weights, RankUpdates(weights), limits, record)
    app = build_app(service, token=TOKEN, more_routes=openai_routes(service, text or TextSide("tiny", limits)))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    decode.start()
    thread.start()
    try:
        yield SimpleNamespace(client=Client(port), service=service, decode=decode, weights=weights)
    finally:
        server.should_exit = True
        thread.join(10)
        decode.stop()
        decode.join(10)
    assert not failures


@pytest.fixture
def weights(tiny):
    return FakeWeights(tiny)


@pytest.fixture
def server(weights):
    with serving(weights) as running:
        yield running


@pytest.fixture
def start_server():
    return serving


@pytest.fixture
def client_of():
    return Client
