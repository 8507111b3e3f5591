"""A driver of servers that exist in this process only, with all the ways in which real ones fail."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from archon_core.contracts.rollout import Completion, GenerationRequest
from archon_core.errors import ServerError
from archon_core.serving.record import ServerCapabilities, ServerRecord, ServerState
from archon_core.serving.scores import Scores, ScoringRequest, ServedModelInfo
from archon_rollout.pool.watch import PROBE_PREFIX

MODEL = ServedModelInfo("model", 0, vocab_size=100)


@dataclass
class FakeServer:
    """Generates prompt length, prompt length + 1, ... as token ids.

    Attributes:
        record: as announced.
        hangs: answers nothing, until this is false.
        busy: makes tokens, also while it answers nothing.
        dead: cannot be reached.
        refuses: answers every request with this error.
        ids: ids of all requests, probes included; it refuses one that it knows, such as of a request that still runs.
        info: what it says of its model; scores of another version than the record's come from changed weights.
        aborts_after: ends the next request after so many tokens; ``None`` never.
    """

    record: ServerRecord
    hangs: bool = False
    busy: bool = False
    dead: bool = False
    refuses: str = ""
    aborts_after: int | None = None
    info: ServedModelInfo = MODEL
    scored: list[ScoringRequest] = field(default_factory=list)
    requests: list[GenerationRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)


class FakeDriver:
    """The part of ``contracts.serving.ServerDriver`` that a pool calls."""

    capabilities = ServerCapabilities(
        transports=(),
        pause_modes=("abort",),
        interrupt=True,
        token_versions=True,
        scores=True,
        score_temperatures=True,
    )

    def __init__(self, *servers: FakeServer) -> None:
        self.servers = {server.record.incarnation: server for server in servers}

    def ready(self, address: str, *, timeout: float) -> ServerRecord | None:
        for server in self.servers.values():
            if server.record.address == address and not server.hangs:
                return server.record
        return None

    async def generate(
        self, server: ServerRecord, request: GenerationRequest, *, request_id: str, timeout: float
    ) -> list[Completion]:
        found = self.servers.get(server.incarnation)
        if found is None:
            raise ServerError(f"server {server.address}: cannot connect")
        is_probe = request_id.startswith(PROBE_PREFIX)
        if request_id in found.ids:
            raise ServerError(f"Duplicate request ID detected: {request_id}")
        found.ids.add(request_id)
        if not is_probe:
            found.requests.append(request)
        if found.hangs:
            while found.hangs:
                await asyncio.sleep(0.005)
        if found.refuses:
            raise ServerError(found.refuses)
        n = request.config.max_new_tokens
        stop_reason = "length"
        if found.aborts_after is not None and not is_probe and found.aborts_after < n:
            n, stop_reason, found.aborts_after = found.aborts_after, "abort", None
        start = len(request.prompt_ids)
        tokens = tuple(range(start, start + n))
        values = tuple(-float(token) for token in tokens)
        return [
            Completion(tokens, values, (found.record.version,) * n, stop_reason)  # type: ignore[arg-type]
            for _ in request.seeds
        ]

    def state(self, server: ServerRecord, *, timeout: float) -> ServerState:
        found = self.servers[server.incarnation]
        if found.dead:
            raise ServerError(f"server {server.address}: cannot connect")
        return ServerState(server.incarnation, found.record.version, paused=False)

    def is_generating(self, server: ServerRecord, *, timeout: float) -> bool:
        return self.servers[server.incarnation].busy

    def abort(self, server: ServerRecord, request_ids: list[str] | None, *, timeout: float) -> None:
        self.servers[server.incarnation].aborted += request_ids or ["all"]

    async def score(self, server: ServerRecord, request: ScoringRequest, *, timeout: float) -> Scores:
        """Minus each token id, times the temperature."""
        found = self.servers.get(server.incarnation)
        if found is None:
            raise ServerError(f"server {server.address}: cannot connect")
        found.scored.append(request)
        await asyncio.sleep(0)
        if found.refuses:
            raise ServerError(found.refuses)
        rows = tuple(tuple(-token * request.temperature for token in ids[1:]) for ids in request.sequences)
        return Scores(rows, found.record.version)

    def describe_model(self, server: ServerRecord, *, timeout: float) -> ServedModelInfo:
        return self.servers[server.incarnation].info


CURRENT: list[FakeDriver] = []
"""The driver of the test that runs."""


def current_driver(config: Any, *, options: Any = None, token: str = "") -> FakeDriver:
    """The target of a ``ServerDriverSpec``."""
    return CURRENT[-1]
