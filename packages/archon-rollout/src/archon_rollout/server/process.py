"""The process of ``archon serve``: binds the address, loads the model, serves until a signal, finishes its requests.

The first Ctrl-C, or SIGTERM, closes the address and lets requests finish; the second one abandons them.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
import uvicorn
from starlette.types import ASGIApp

from archon_core.errors import TrainingError
from archon_core.layout import Layout
from archon_core.ranks.ranks import Ranks
from archon_core.serving.descriptors import raise_descriptor_limit
from archon_core.serving.listener import bind
from archon_core.serving.record import ServerRecord
from archon_core.serving.run_token import TOKEN, run_token
from archon_engine.checkpoint.publication import publish_text
from archon_rollout.model_limits import model_limits
from archon_rollout.registries.announcer import Announcer
from archon_rollout.registries.run_place import RunPlace
from archon_rollout.server.address import advertised
from archon_rollout.server.app import build_app
from archon_rollout.server.decode_thread import DecodeThread
from archon_rollout.server.environment import PARENT
from archon_rollout.server.model import ServedModel
from archon_rollout.server.openai_app import openai_routes
from archon_rollout.server.openai_text import TextSide
from archon_rollout.server.parent import end_with
from archon_rollout.server.rank_updates import RankUpdates
from archon_rollout.server.service import Service
from archon_rollout.server.serving_loop import ServingLoop
from archon_rollout.server.weight_copies import NO_WEIGHTS, EngineCopies, ServedWeights
from archon_rollout.server.world import end_followers, join, serve_store, start_follower

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServeOptions:
    """Options of ``archon serve``.

    Attributes:
        model: what to serve.
        layout: of the server, ``t`` ranks.
        host: address to listen on.
        port: 0 for any free port.
        max_batch_size: largest number of sequences to decode at once.
        version: version of the model's weights.
        record: file to write the server's record to when it is ready; ``None`` for none.
        drain_seconds: time for requests to finish after the first Ctrl-C.
        run: the run whose trainer may use the server; ``None`` for none.
        announce_host: name under which others reach this machine; ``None`` for the address that it listens on.
        announce_ttl: seconds after which the entry in the registry expires without a refresh.
    """

    model: ServedModel
    layout: Layout
    host: str = "127.0.0.1"
    port: int = 0
    max_batch_size: int = 256
    version: int = 0
    record: Path | None = None
    drain_seconds: float = 30.0
    run: RunPlace | None = None
    announce_host: str | None = None
    announce_ttl: float = 15.0

    @property
    def first_version(self) -> int:
        """Version of the weights at the start; ``NO_WEIGHTS`` for an architecture without weights."""
        return NO_WEIGHTS if self.model.folder is None else self.version


def serve(options: ServeOptions) -> None:
    """Serve until a signal.

    Raises:
        ConfigError: the address cannot be bound, or there are too few devices.
        ModelError, WeightsError, LayoutError: the model cannot be loaded.
        TrainingError: generation failed in a way that the server cannot survive.
    """
    _log_to_stderr()
    end_with(os.environ.get(PARENT))
    raise_descriptor_limit()  # one descriptor per request
    options.model.check_layout(options.layout)
    listener = bind(options.host, options.port, options=f"--host {options.host} --port {options.port}")
    listener.set_inheritable(True)
    followers: list[subprocess.Popen[str]] = []
    try:
        ranks = _start_ranks(options, followers)
        _serve(options, listener, ranks, followers)
    except BaseException:
        for follower in followers:
            follower.kill()
        raise
    end_followers(followers)
    if followers:
        dist.destroy_process_group()
    logger.info("ended")


def _start_ranks(options: ServeOptions, followers: list[subprocess.Popen[str]]) -> Ranks:
    """Start the other ranks of the layout, if any, into ``followers``, and join them."""
    size = options.layout.world_size
    if size == 1:
        return Ranks()
    store = serve_store()
    described = {
        "model": options.model.name,
        "dtype": options.model.config.dtype,
        "run_as": options.model.config.archon.model,
        "layout": str(options.layout),
        "version": options.first_version,
        "max_batch_size": options.max_batch_size,
    }
    for rank in range(1, size):
        followers.append(start_follower(rank, size, store.port, json.dumps(described)))
    return join(store, 0, size)


def _serve(
    options: ServeOptions, listener: socket.socket, ranks: Ranks, followers: list[subprocess.Popen[str]]
) -> None:
    start = time.perf_counter()
    given = os.environ.get(TOKEN) if options.run is None else run_token(options.run.servers)
    token = given or secrets.token_urlsafe(24)
    active = options.model.load(options.layout)
    copies = EngineCopies(active, lambda: options.model.load_empty(options.layout))
    incarnation = ranks.broadcast(uuid.uuid4().hex)
    weights = ServedWeights(copies, version=options.first_version, incarnation=incarnation)
    address = advertised(*listener.getsockname()[:2], host=options.announce_host)
    record = ServerRecord(
        address=address,
        incarnation=incarnation,
        kind="served",
        tensor=options.layout.dims["t"],
        version=weights.version,
        started_at=time.time(),
    )
    server = _Server(options)
    decode = DecodeThread(ServingLoop(weights, max_rows=options.max_batch_size), ranks, on_failure=server.fail)
    limits = model_limits(active.module)
    text = TextSide.of(options.model, limits)
    # Stop texts are found by every rank, and the others have no tokenizer.
    decode_text = text.tokenizer.decode if text.tokenizer is not None and ranks.size == 1 else None
    describe = functools.cache(lambda: options.model.describe(limits, options.first_version))
    service = Service(decode, weights, RankUpdates(weights, followers), limits, record, decode_text, describe)
    app = build_app(service, token=token, more_routes=openai_routes(service, text))
    announcer = _announcer(options, service)
    decode.start()
    if not given:
        logger.info("token: %s (send it as 'Authorization: Bearer TOKEN'; set %s to choose one)", token, TOKEN)
    if options.host not in LOOPBACK:
        logger.info("other machines can reach this server; the token and all texts travel unencrypted")

    def announce() -> None:
        what = f"version {weights.version}" if weights.is_usable else "no weights yet"
        seconds = time.perf_counter() - start
        logger.info("ready: http://%s (model %s, %s, %.1f s)", address, options.model.name, what, seconds)
        if options.record is not None:
            publish_text(options.record, json.dumps(record.as_data()) + "\n")
        if announcer is not None:
            announcer.start()

    def withdraw() -> None:
        if announcer is not None:
            announcer.stop()

    try:
        server.run_until_signal(app, service, listener, announce, withdraw)
    finally:
        withdraw()
        if announcer is not None and announcer.is_alive():
            announcer.join(timeout=10)
        decode.stop()
        decode.join(timeout=10)
    if server.failure is not None:
        raise TrainingError(f"archon serve: generation failed: {server.failure!r}") from server.failure


def _announcer(options: ServeOptions, service: Service) -> Announcer | None:
    """The thread that will announce the server, if a run may use it."""
    if options.run is None:
        return None
    registry = options.run.discovery.open()
    return Announcer(registry, lambda: service.record, ttl=options.announce_ttl, place=options.run.described)


class _Server:
    """uvicorn with this server's shutdown."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._uvicorn: uvicorn.Server | None = None
        self.failure: BaseException | None = None

    def run_until_signal(
        self,
        app: ASGIApp,
        service: Service,
        listener: socket.socket,
        announce: Callable[[], None],
        withdraw: Callable[[], None],
    ) -> None:
        """Serve on ``listener``; calls ``announce`` once requests are accepted, and ``withdraw`` before the end."""
        # uvicorn handles the signals while it runs, then raises them again for these handlers.
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_keep_alive=120)
        self._uvicorn = _Draining(config, service, announce, withdraw, drain_seconds=self._options.drain_seconds)
        if self.failure is not None:
            self._uvicorn.should_exit = True
        try:
            asyncio.run(self._uvicorn.serve(sockets=[listener]))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def fail(self, error: BaseException) -> None:
        """End the server because of ``error``."""
        self.failure = error
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True


class _Draining(uvicorn.Server):
    """Announces the start, and finishes requests at the end."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        announce: Callable[[], None],
        withdraw: Callable[[], None],
        *,
        drain_seconds: float,
    ) -> None:
        super().__init__(config)
        self._service = service
        self._announce = announce
        self._withdraw = withdraw
        self._drain_seconds = drain_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._withdraw()  # first: no trainer should choose a server that drains
        n_requests = self._service.end()
        if n_requests:
            logger.info("finishing %d requests; press Ctrl-C again to abandon them", n_requests)
        limit = asyncio.get_running_loop().call_later(self._drain_seconds, self._service.abandon)
        try:
            await super().shutdown(sockets)
        finally:
            limit.cancel()


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    package = logging.getLogger("archon_rollout")
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False
