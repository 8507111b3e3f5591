"""The driver of our own servers (``archon serve``)."""

from __future__ import annotations

import itertools
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archon_core.contracts.rollout import Completion, GenerationRequest
from archon_core.errors import ServerError, UncertainCallError, UnreachableError
from archon_core.layout import Layout
from archon_core.serving.http_client import call, call_async, field_of
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.model_folder import has_weights
from archon_core.serving.record import PauseMode, ServerCapabilities, ServerLaunch, ServerRecord, ServerState
from archon_core.serving.run_token import TOKEN
from archon_core.serving.scores import Scores, ScoringRequest, ServedModelInfo
from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan
from archon_rollout.receiving.device_memory import has_device_memory
from archon_rollout.server.environment import PARENT
from archon_rollout.server.wire import read_completion, read_scores, request_data


class ServedDriver:
    """Implements ``contracts.serving.ServerDriver``.

    Args:
        config: the section ``rollout``.
        options: unused; our servers have no section.
        token: the run's secret.
    """

    def __init__(self, config: Any, *, options: Any = None, token: str = "") -> None:
        self._config = config
        self._token = token
        # A server refuses a pause or resume that arrives after a later one of the same caller.
        self._caller = uuid.uuid4().hex
        self._sequence = itertools.count()

    @property
    def capabilities(self) -> ServerCapabilities:
        """What our servers can do. They receive by ``ipc`` where there is a device whose memory they can open."""
        on_device = ("ipc",) if has_device_memory() else ()
        return ServerCapabilities(
            transports=("shm", "disk", "distributed", *on_device),
            pause_modes=("keep", "wait", "abort"),
            staged=True,
            checksums=True,
            token_versions=True,
            routed_experts=True,
            interrupt=True,
            scores=True,
            score_temperatures=True,
        )

    def launch(
        self,
        model: str,
        *,
        layout: Layout,
        index: int,
        host: str,
        port: int,
        dtype: str = "",
        model_spec: str = "",
        frozen: bool = False,
    ) -> ServerLaunch:
        """The command that starts server ``index``."""
        tensor = layout.dims["t"]
        empty = not frozen and Path(model).is_dir() and not has_weights(Path(model))
        path = Path(model) / "config.json" if empty else model
        command = [sys.executable, "-P", "-m", "archon_core.cli", "serve", "--model", str(path), "--host", host]
        command += ["--port", str(port), "--layout", f"archon:t{tensor}"]
        command += ["--max-batch-size", str(self._config.max_batch_size)]
        command += ["--dtype", dtype] if dtype else []
        command += ["--run-as", model_spec] if model_spec else []
        environment = {TOKEN: self._token, PARENT: str(os.getpid())}
        return ServerLaunch(tuple(command), environment, n_processes=tensor, ends_with_parent=True)

    def ready(self, address: str, *, timeout: float) -> ServerRecord | None:
        """The record of the server at ``address``; ``None`` while it does not answer."""
        try:
            answer = call(address, "GET", "/state", token=self._token, timeout=timeout)
        except (UncertainCallError, UnreachableError):
            return None
        return ServerRecord.from_data(field_of(answer, "record", address=address, path="/state"))

    async def generate(
        self, server: ServerRecord, request: GenerationRequest, *, request_id: str, timeout: float
    ) -> list[Completion]:
        """The completions of one request."""
        data = self._generate_data([request], request_id)
        answer = await call_async(server.address, "/generate", data, token=self._token, timeout=timeout)
        return self._read_results(server, answer, [request])[0]

    def generate_all(
        self, server: ServerRecord, requests: Sequence[GenerationRequest], *, timeout: float
    ) -> list[list[Completion]]:
        """The completions of many requests, in one call that ends when all have ended."""
        data = self._generate_data(requests, "")
        answer = call(server.address, "POST", "/generate", data, token=self._token, timeout=timeout)
        return self._read_results(server, answer, requests)

    async def score(self, server: ServerRecord, request: ScoringRequest, *, timeout: float) -> Scores:
        """Log-probabilities of given tokens."""
        data = {"sequences": request.sequences, "temperature": request.temperature}
        answer = await call_async(server.address, "/score", data, token=self._token, timeout=timeout)
        self._check_incarnation(server, answer)
        return read_scores(answer).check(request, server.address)

    def describe_model(self, server: ServerRecord, *, timeout: float) -> ServedModelInfo:
        """The model that the server was started with."""
        return ServedModelInfo.from_data(call(server.address, "GET", "/model", token=self._token, timeout=timeout))

    def pause(self, server: ServerRecord, mode: PauseMode, *, timeout: float) -> None:
        """Stop generation."""
        self._control(server, "/pause", timeout, mode=mode, **self._order())

    def resume(self, server: ServerRecord, *, timeout: float) -> None:
        """Continue generation."""
        self._control(server, "/resume", timeout, **self._order())

    def abort(self, server: ServerRecord, request_ids: Sequence[str] | None, *, timeout: float) -> None:
        """End requests; ``None`` ends all."""
        self._control(server, "/abort", timeout, request_ids=None if request_ids is None else list(request_ids))

    def state(self, server: ServerRecord, *, timeout: float) -> ServerState:
        """The server's state."""
        return ServerState.from_data(call(server.address, "GET", "/state", token=self._token, timeout=timeout))

    def is_generating(self, server: ServerRecord, *, timeout: float) -> bool:
        """False: a short request has a row of the batch to itself, so a probe does not wait behind others."""
        return False

    def begin_update(self, server: ServerRecord, plan: UpdatePlan, *, timeout: float) -> None:
        """Start an update."""
        self._control(server, "/update/begin", timeout, plan=plan.as_data())

    def receive_bucket(self, server: ServerRecord, notice: BucketNotice, *, timeout: float) -> Receipt:
        """Let the server receive one bucket."""
        return Receipt.from_data(self._control(server, "/update/bucket", timeout, notice=notice.as_data()))

    def verify_update(self, server: ServerRecord, manifest: WeightManifest, *, timeout: float) -> Receipt:
        """The receipt for all tensors."""
        return Receipt.from_data(self._control(server, "/update/verify", timeout, manifest=manifest.as_data()))

    def commit_update(self, server: ServerRecord, version: int, *, timeout: float) -> None:
        """Switch to the received weights."""
        self._control(server, "/update/commit", timeout, version=version)

    def abort_update(self, server: ServerRecord, version: int, *, timeout: float) -> None:
        """Drop what was received."""
        self._control(server, "/update/abort", timeout, version=version)

    def _control(self, server: ServerRecord, path: str, timeout: float, **fields: Any) -> Any:
        data = {"incarnation": server.incarnation, **fields}
        return call(server.address, "POST", path, data, token=self._token, timeout=timeout)

    def _order(self) -> dict[str, Any]:
        return {"caller": self._caller, "sequence": next(self._sequence)}

    def _generate_data(self, requests: Sequence[GenerationRequest], request_id: str) -> dict[str, Any]:
        return {
            "requests": [request_data(request) for request in requests],
            "request_id": request_id,
            "routed_experts": self._config.return_routed_experts,
        }

    def _read_results(
        self, server: ServerRecord, answer: Any, requests: Sequence[GenerationRequest]
    ) -> list[list[Completion]]:
        self._check_incarnation(server, answer)
        answers = field_of(answer, "results", address=server.address, path="/generate")
        if not isinstance(answers, list) or not all(isinstance(samples, list) for samples in answers):
            raise ServerError(f"server {server.address}: /generate answered results that are no lists of completions")
        results = [[read_completion(item) for item in samples] for samples in answers]
        found, expected = list(map(len, results)), [len(request.seeds) for request in requests]
        if found != expected:
            raise ServerError(f"server {server.address}: found {found} completions, expected {expected}")
        return results

    @staticmethod
    def _check_incarnation(server: ServerRecord, answer: Any) -> None:
        found = field_of(answer, "incarnation", address=server.address, path="the server")
        if found != server.incarnation:
            raise ServerError(
                f"server {server.address}: another incarnation answered: {found}, not {server.incarnation}; the server "
                "was restarted"
            )
