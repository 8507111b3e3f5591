"""The driver of SGLang servers.

SGLang loads weights in place, so a commit pauses the server, lets it read the published folder, and resumes it. The
pause retracts running requests: they continue from their tokens, whose KV cache SGLang recomputes with the new weights.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from archon_core.contracts.rollout import Completion, GenerationRequest
from archon_core.errors import RefusedRequestError, ServerError, UncertainCallError, UnreachableError
from archon_core.layout import Layout
from archon_core.serving.adapter_versions import FOLDER, AdapterVersions, adapter_name, labelled, versions_in_use
from archon_core.serving.http_client import call, call_each, exchange, field_of
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.record import (
    PauseMode,
    ServerCapabilities,
    ServerLaunch,
    ServerRecord,
    ServerState,
    sequences_beside_probes,
)
from archon_core.serving.scores import Scores, ScoringRequest, ServedModelInfo
from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan
from archon_core.serving.weight_labels import BROKEN_LABEL, DEFAULT_LABEL, version_of
from archon_sglang.generation import read_completion, request_data
from archon_sglang.launching import launch_server
from archon_sglang.options import SglangOptions
from archon_sglang.scoring import read_scores, scoring_data

PAUSE_MODES = {"keep": "retract", "abort": "abort"}
"""Our names -> SGLang's. Its ``in_place`` would continue with a KV cache of the old weights."""

LABEL_SECONDS = 10.0
"""Longest limit of the call that labels weights as broken, after a call that has used up its own limit."""


class SglangDriver:
    """Implements ``contracts.serving.ServerDriver``.

    Args:
        config: the section ``rollout``.
        options: the section ``sglang``; ``None`` for its defaults.
        token: the run's secret, sent as bearer token. SGLang takes a key on its command line or in a file only, so
            servers that this driver starts have none; keep them on loopback or in a closed network.
    """

    def __init__(self, config: Any, *, options: Any = None, token: str = "") -> None:
        self._config = config
        self._options: SglangOptions = options or SglangOptions()
        self._token = token
        self._folders: dict[str, tuple[int, str]] = {}
        self._n_samples: dict[str, int] = {}
        self._adapters = AdapterVersions(versions_in_use(config.max_head_offpolicyness))
        self._experts_shapes: dict[str, tuple[int, int]] = {}
        batch = self._options.max_running_requests
        self.capabilities = ServerCapabilities(
            transports=("disk",),
            pause_modes=("keep", "abort"),
            staged=False,
            checksums=False,
            token_versions=True,
            routed_experts=True,
            interrupt=True,
            scores=True,
            max_sequences=None if batch is None else sequences_beside_probes(batch),
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
        return launch_server(
            model,
            layout=layout,
            host=host,
            port=port,
            dtype=dtype,
            routed_experts=self._config.return_routed_experts,
            loads_adapters=getattr(self._config, "use_lora", False) and not frozen,
            options=replace(self._options, model_path="") if frozen else self._options,
        )

    def ready(self, address: str, *, timeout: float) -> ServerRecord | None:
        """The record of the server at ``address``; ``None`` while it does not accept requests."""
        try:
            status, _ = exchange(address, "GET", "/ready", token=self._token, timeout=timeout)
        except (UncertainCallError, UnreachableError):
            return None
        if status == 503:
            return None
        if status != 200:
            raise ServerError(f"server {address}: /ready answered {status}; check that it is SGLang 0.5.23")
        info = self._get(address, "/server_info", timeout)
        size = field_of(info, "tp_size", address=address, path="/server_info")
        version = version_of(self._read(address, "/model_info", "weight_version", timeout))
        return ServerRecord(address, _incarnation(info), "sglang", tensor=size, version=version)

    async def generate(
        self, server: ServerRecord, request: GenerationRequest, *, request_id: str, timeout: float
    ) -> list[Completion]:
        """The completions of one request. Each sample is a request of SGLang, because each has its own seed."""
        experts = self._config.return_routed_experts
        shape = await asyncio.to_thread(self._experts_shape, server, timeout) if experts else None
        seeded = self._options.enable_deterministic_inference
        version = self._adapters.version_for(server, expected=getattr(self._config, "use_lora", False))
        adapter = {} if version is None else {"lora_path": adapter_name(version)}
        ids = _sample_ids(request_id, len(request.seeds))
        bodies = [
            {**request_data(request, sample, request_id=id, routed_experts=experts, seeded=seeded), **adapter}
            for sample, id in enumerate(ids)
        ]
        self._n_samples[request_id] = len(ids)
        try:
            answers = await call_each(server.address, "/generate", bodies, token=self._token, timeout=timeout)
        finally:
            self._n_samples.pop(request_id, None)
        return [labelled(read_completion(answer, experts_shape=shape), version) for answer in answers]

    async def score(self, server: ServerRecord, request: ScoringRequest, *, timeout: float) -> Scores:
        """Log-probabilities of given tokens, at temperature 1. Each sequence is a request of SGLang."""
        if request.temperature != 1:
            raise RefusedRequestError(f"score: found temperature {request.temperature:g}; SGLang scores at 1 only")
        ids = _sample_ids(f"score-{uuid.uuid4().hex}", len(request.sequences))
        bodies = [scoring_data(one, request_id=id) for one, id in zip(request.sequences, ids, strict=True)]
        answers = await call_each(server.address, "/generate", bodies, token=self._token, timeout=timeout)
        scored = [read_scores(*pair) for pair in zip(answers, request.sequences, strict=True)]
        return Scores.of_sequences(scored, request, server.address)

    def describe_model(self, server: ServerRecord, *, timeout: float) -> ServedModelInfo:
        """The server's model by its name. SGLang does not tell whether its weights were published."""
        info = self._get(server.address, "/model_info", timeout)
        label = field_of(info, "weight_version", address=server.address, path="/model_info")
        return ServedModelInfo(str(info.get("model_path", "")), version=version_of(label))

    def pause(self, server: ServerRecord, mode: PauseMode, *, timeout: float) -> None:
        """Stop generation.

        Raises:
            ServerError: the mode is ``wait``, which SGLang does not have.
        """
        if mode not in PAUSE_MODES:
            raise ServerError(f"pause: found mode {mode!r}; SGLang allows {', '.join(PAUSE_MODES)}")
        self._post(server.address, "/pause_generation", {"mode": PAUSE_MODES[mode]}, timeout)

    def resume(self, server: ServerRecord, *, timeout: float) -> None:
        """Continue generation."""
        self._post(server.address, "/continue_generation", {"torch_empty_cache": False}, timeout)

    def abort(self, server: ServerRecord, request_ids: Sequence[str] | None, *, timeout: float) -> None:
        """End requests; ``None`` ends all. SGLang takes one id a call; all calls together have the time limit."""
        deadline = time.monotonic() + timeout
        bodies: list[dict[str, Any]] = [{"abort_all": True}]
        if request_ids is not None:
            ids = [id for one in request_ids for id in _sample_ids(one, self._n_samples.get(one, 1))]
            bodies = [{"rid": id} for id in ids]
        for body in bodies:
            left = deadline - time.monotonic()
            if left <= 0:
                raise UncertainCallError(f"server {server.address}: /abort_request was not over after {timeout:g} s")
            status, content = exchange(server.address, "POST", "/abort_request", body, token=self._token, timeout=left)
            if status != 200:
                raise ServerError(f"server {server.address}: /abort_request answered {status}: {content[:200]!r}")

    def state(self, server: ServerRecord, *, timeout: float) -> ServerState:
        """The server's state. ``paused`` is also true for a server in bad health, which SGLang does not tell apart."""
        address = server.address
        info = self._get(address, "/server_info", timeout)
        field_of(info, "tp_size", address=address, path="/server_info")
        incarnation = _incarnation(info)
        version = version_of(self._read(address, "/model_info", "weight_version", timeout))
        status, _ = exchange(address, "GET", "/ready", token=self._token, timeout=timeout)
        return ServerState(incarnation, version, paused=status != 200)

    def is_generating(self, server: ServerRecord, *, timeout: float) -> bool:
        """Whether SGLang's scheduler answers, between two batches, and is not paused."""
        try:
            return not self.state(server, timeout=timeout).paused
        except ServerError:
            return False

    def begin_update(self, server: ServerRecord, plan: UpdatePlan, *, timeout: float) -> None:
        """Remember the folder; the server reads it on commit.

        Raises:
            ServerError: another transport, or another incarnation answers.
        """
        if plan.transport not in self.capabilities.transports:
            raise ServerError(
                f"transport {plan.transport!r}: allowed for SGLang servers is disk; set rollout.weight_transport=disk"
            )
        found = self.state(server, timeout=timeout).incarnation
        if found != server.incarnation:
            raise ServerError(
                f"server {server.address}: another incarnation answered: {found}, not {server.incarnation}; the server "
                "was restarted"
            )
        self._folders[server.incarnation] = (plan.version, str(plan.setup["final"]))

    def receive_bucket(self, server: ServerRecord, notice: BucketNotice, *, timeout: float) -> Receipt:
        """An empty receipt: the server reads all buckets on commit."""
        return Receipt(server.incarnation, notice.version)

    def verify_update(self, server: ServerRecord, manifest: WeightManifest, *, timeout: float) -> Receipt:
        """An empty receipt: SGLang computes no checksums."""
        self._adapters.receive(server, manifest.tensors)
        return Receipt(server.incarnation, manifest.version)

    def commit_update(self, server: ServerRecord, version: int, *, timeout: float) -> None:
        """Pause, load the folder, resume; adapters apart are loaded without a pause.

        If the server does not answer, it may have loaded a part. The weights are then labelled as broken before it is
        resumed; a load that ends later sets the label of its version.

        Raises:
            ServerError: another version was received, or SGLang refused the weights.
        """
        received, folder = self._folders.pop(server.incarnation, (None, ""))
        if received != version:
            raise ServerError(
                f"server {server.address}: commit of version {version}: found {received} received; start the update "
                "again"
            )
        if not self._adapters.are_received(server):
            self._load_folder(server, folder, str(version), timeout)
            return
        if self._adapters.needs_adapted(server):
            # The label changes with the adapter, without which these weights are no version of the trainer's.
            self._load_folder(server, folder, DEFAULT_LABEL, timeout)
            self._adapters.has_loaded_adapted(server)
        name = adapter_name(version)
        if self._adapters.forget(server, version):
            self._post(server.address, "/unload_lora_adapter", {"lora_name": name}, timeout)
        self._load_adapter(server.address, {"lora_name": name, "lora_path": f"{folder}/{FOLDER}"}, timeout)
        label = {"new_version": str(version), "abort_all_requests": False}
        self._post(server.address, "/update_weight_version", label, timeout)
        # Beyond sglang.max_loaded_loras, SGLang unloads the least recently used ones; an unload waits for its requests.
        self._adapters.has_loaded(server, version)

    def _load_adapter(self, address: str, body: Mapping[str, str], timeout: float) -> None:
        """Load an adapter. SGLang refuses a name that it has. A trainer that ended, or a call without an answer, may
        have left one."""
        try:
            self._post(address, "/load_lora_adapter", body, timeout)
        except UncertainCallError:
            raise
        except ServerError:
            with suppress(ServerError):
                self._post(address, "/unload_lora_adapter", {"lora_name": body["lora_name"]}, timeout)
            self._post(address, "/load_lora_adapter", body, timeout)

    def _load_folder(self, server: ServerRecord, folder: str, label: str, timeout: float) -> None:
        body = {
            "model_path": folder,
            "load_format": "auto",  # without it, a server that started without weights makes random ones
            "weight_version": label,
            "flush_cache": True,
            "abort_all_requests": False,
        }
        try:
            self.pause(server, "keep", timeout=timeout)
            try:
                self._post(server.address, "/update_weights_from_disk", body, timeout)
            except UncertainCallError:
                with suppress(ServerError):
                    broken = {"new_version": BROKEN_LABEL, "abort_all_requests": False}
                    self._post(server.address, "/update_weight_version", broken, min(timeout, LABEL_SECONDS))
                raise
        finally:
            self.resume(server, timeout=timeout)

    def abort_update(self, server: ServerRecord, version: int, *, timeout: float) -> None:
        """Forget the folder."""
        if self._folders.get(server.incarnation, (None, ""))[0] == version:
            del self._folders[server.incarnation]

    def _experts_shape(self, server: ServerRecord, timeout: float) -> tuple[int, int]:
        """Layers and experts per token, from the model's folder, because SGLang's answer has no shape."""
        if server.incarnation not in self._experts_shapes:
            folder = Path(self._read(server.address, "/model_info", "model_path", timeout))
            try:
                config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
                shape = (int(config["num_hidden_layers"]), int(config["num_experts_per_tok"]))
            except (OSError, KeyError, ValueError) as error:
                raise ServerError(
                    f"routed experts: found no num_hidden_layers and num_experts_per_tok in {folder}/config.json "
                    f"({error!r}); the folder must be visible here, and have a mixture of experts"
                ) from error
            self._experts_shapes[server.incarnation] = shape
        return self._experts_shapes[server.incarnation]

    def _get(self, address: str, path: str, timeout: float) -> Any:
        return call(address, "GET", path, token=self._token, timeout=timeout)

    def _read(self, address: str, path: str, field: str, timeout: float) -> Any:
        return field_of(self._get(address, path, timeout), field, address=address, path=path)

    def _post(self, address: str, path: str, data: Any, timeout: float) -> Any:
        answer = call(address, "POST", path, data, token=self._token, timeout=timeout)
        if isinstance(answer, dict) and answer.get("success") is False:
            why = answer.get("message") or answer.get("error_message")
            raise ServerError(f"server {address}: {path} failed: {why}")
        return answer


def _incarnation(info: Any) -> str:
    """The identity of this start: the served name, unique for servers that Archon starts, and the measured durations of
    the start."""
    text = json.dumps([info.get("served_model_name"), info.get("startup_time"), info.get("port")], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _sample_ids(request_id: str, n_samples: int) -> list[str]:
    """Ids of one length: SGLang also ends requests whose id begins with the one that it is given."""
    return [f"{request_id}-{sample:05}" for sample in range(n_samples)]
