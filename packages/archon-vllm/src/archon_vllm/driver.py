"""The driver of vLLM servers.

With the transports ``shm`` and ``distributed``, archon-vllm's plugin in the server stages weights in host memory while
the server generates; a commit pauses it, loads them, sets the version and resumes it. With ``disk``, vLLM itself reads
the published folder on commit; it then needs no plugin, and reports no checksums.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from archon_core.contracts.rollout import Completion, GenerationRequest
from archon_core.errors import ConfigError, RefusedRequestError, ServerError, UncertainCallError, UnreachableError
from archon_core.layout import Layout
from archon_core.serving.adapter_versions import AdapterVersions, adapter_name, labelled, versions_in_use
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
from archon_core.serving.weight_labels import BROKEN_LABEL, version_of
from archon_vllm.adapters import load_adapter, loads_adapters, unload_adapter
from archon_vllm.experts import FIX, folder_has_experts, published_expert
from archon_vllm.generation import read_completion, request_data
from archon_vllm.launching import launch_server
from archon_vllm.options import TRANSPORTS, VllmOptions
from archon_vllm.progress import makes_tokens
from archon_vllm.scoring import read_scores, scoring_data


class VllmDriver:
    """Implements ``contracts.serving.ServerDriver``.

    Args:
        config: the section ``rollout``.
        options: the section ``vllm``; ``None`` for its defaults.
        token: the run's secret, sent as bearer token.
    """

    def __init__(self, config: Any, *, options: Any = None, token: str = "") -> None:
        self._config = config
        self._options: VllmOptions = options or VllmOptions()
        self._token = token
        self._transport = config.weight_transport or TRANSPORTS[0]
        self._staged = self._transport != "disk"
        self._folders: dict[str, tuple[int, str]] = {}
        self._n_samples: dict[str, int] = {}
        self._adapters = AdapterVersions(versions_in_use(config.max_head_offpolicyness))
        self.capabilities = ServerCapabilities(
            transports=(self._transport,),
            pause_modes=("keep", "wait", "abort"),
            staged=False,
            checksums=self._staged,
            token_versions=True,
            routed_experts=True,
            interrupt=True,
            scores=True,
            max_sequences=sequences_beside_probes(self._options.max_num_seqs),
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
        """The command that starts server ``index``.

        Raises:
            ConfigError: the model is a mixture of experts that will get new weights; see ``archon_vllm.experts``.
        """
        if not frozen and not self._options.allow_experts and folder_has_experts(model):
            raise ConfigError(f"rollout.backend: found vllm with a mixture of experts ({model}); {FIX}")
        return launch_server(
            model,
            layout=layout,
            host=host,
            port=port,
            dtype=dtype,
            transport=self._transport,
            routed_experts=self._config.return_routed_experts,
            options=replace(self._options, model="") if frozen else self._options,
            loads_adapters=self._loads_adapters and not frozen,
            token=self._token,
        )

    @property
    def _loads_adapters(self) -> bool:
        return loads_adapters(self._config, self._transport)

    def ready(self, address: str, *, timeout: float) -> ServerRecord | None:
        """The record of the server at ``address``; ``None`` while it does not answer."""
        try:
            status, _ = exchange(address, "GET", "/health", token=self._token, timeout=timeout)
        except (UncertainCallError, UnreachableError):
            return None
        if status == 503:
            return None
        if status != 200:
            raise ServerError(f"server {address}: /health answered {status}; allowed is vLLM 0.32; check the address")
        size = self._read(address, "/get_world_size?include_dp=false", "world_size", timeout)
        state = self._state(address, timeout=timeout)
        return ServerRecord(address, state.incarnation, "vllm", tensor=size, version=state.version)

    async def generate(
        self, server: ServerRecord, request: GenerationRequest, *, request_id: str, timeout: float
    ) -> list[Completion]:
        """The completions of one request. Each sample is a request of vLLM, because each has its own seed."""
        ids = _sample_ids(request_id, len(request.seeds))
        version = self._adapters.version_for(server, expected=self._loads_adapters)
        adapter = {} if version is None else {"model": adapter_name(version)}
        bodies = [{**request_data(request, sample, request_id=id), **adapter} for sample, id in enumerate(ids)]
        path = "/inference/v1/generate"
        self._n_samples[request_id] = len(ids)
        try:
            answers = await call_each(server.address, path, bodies, token=self._token, timeout=timeout)
        finally:
            self._n_samples.pop(request_id, None)
        return [labelled(read_completion(answer), version) for answer in answers]

    async def score(self, server: ServerRecord, request: ScoringRequest, *, timeout: float) -> Scores:
        """Log-probabilities of given tokens, at temperature 1. Each sequence is a request of vLLM."""
        if request.temperature != 1:
            raise RefusedRequestError(f"score: found temperature {request.temperature:g}; vLLM scores at 1 only")
        ids = _sample_ids(f"score-{uuid.uuid4().hex}", len(request.sequences))
        bodies = [scoring_data(one, request_id=id) for one, id in zip(request.sequences, ids, strict=True)]
        answers = await call_each(server.address, "/inference/v1/generate", bodies, token=self._token, timeout=timeout)
        scored = [read_scores(*pair) for pair in zip(answers, request.sequences, strict=True)]
        return Scores.of_sequences(scored, request, server.address)

    def describe_model(self, server: ServerRecord, *, timeout: float) -> ServedModelInfo:
        """The server's model by its name. vLLM does not tell whether its weights were published."""
        config = self._read(server.address, "/server_info?config_format=json", "vllm_config", timeout)
        name = str((config.get("model_config") or {}).get("model", ""))
        return ServedModelInfo(name, version=self._state(server.address, timeout=timeout).version)

    def pause(self, server: ServerRecord, mode: PauseMode, *, timeout: float) -> None:
        """Stop generation. ``keep`` leaves the KV cache as it is."""
        self._post(server.address, f"/pause?mode={mode}", timeout)

    def resume(self, server: ServerRecord, *, timeout: float) -> None:
        """Continue generation."""
        self._post(server.address, "/resume", timeout)

    def abort(self, server: ServerRecord, request_ids: Sequence[str] | None, *, timeout: float) -> None:
        """End requests; ``None`` ends all."""
        if request_ids is None:
            self._post(server.address, "/abort_requests", timeout, {})
        elif request_ids:  # vLLM takes an empty list for all
            samples = [id for one in request_ids for id in _sample_ids(one, self._n_samples.get(one, 1))]
            # vLLM 0.32 knows requests of this route under another id than the request's.
            ids = [f"generate-tokens-{id}" for id in samples]
            self._post(server.address, "/abort_requests", timeout, {"request_ids": ids})

    def state(self, server: ServerRecord, *, timeout: float) -> ServerState:
        """The server's state."""
        return self._state(server.address, timeout=timeout)

    def is_generating(self, server: ServerRecord, *, timeout: float) -> bool:
        """See ``progress.makes_tokens``."""
        return makes_tokens(server.address, token=self._token, timeout=timeout)

    def begin_update(self, server: ServerRecord, plan: UpdatePlan, *, timeout: float) -> None:
        """Start an update. Drops what an earlier unfinished one received."""
        if plan.transport not in self.capabilities.transports:
            raise ServerError(
                f"transport {plan.transport!r}: allowed for vLLM servers of this run is "
                f"{self.capabilities.transports[0]}; set rollout.weight_transport"
            )
        if plan.transport == "distributed" and server.world_size > 1:
            raise ServerError(
                f"server {server.address}: found {server.world_size} ranks; the transport distributed reaches vLLM "
                "servers of one rank; use rollout.weight_transport=shm or disk"
            )
        if not self._options.allow_experts and (name := published_expert(plan.manifest)):
            raise ServerError(f"server {server.address}: found the expert weights {name}; {FIX}")
        if not self._staged:
            self._folders[server.incarnation] = (plan.version, str(plan.setup["final"]))
            return
        self._end_session(server.address, timeout)
        self._post(server.address, "/init_weight_transfer_engine", timeout, {"init_info": {"plan": plan.as_data()}})
        self._post(server.address, "/start_weight_update", timeout)

    def receive_bucket(self, server: ServerRecord, notice: BucketNotice, *, timeout: float) -> Receipt:
        """Let the server receive one bucket. With ``disk`` it reads everything on commit, and the receipt is empty."""
        if not self._staged:
            return Receipt(server.incarnation, notice.version)
        self._act(server.address, "bucket", notice.as_data(), timeout)
        return self._receipt(server.address, timeout)

    def verify_update(self, server: ServerRecord, manifest: WeightManifest, *, timeout: float) -> Receipt:
        """The receipt for all tensors; empty with ``disk``."""
        if not self._staged:
            self._adapters.receive(server, manifest.tensors)
            return Receipt(server.incarnation, manifest.version)
        self._act(server.address, "verify", manifest.as_data(), timeout)
        return self._receipt(server.address, timeout)

    def commit_update(self, server: ServerRecord, version: int, *, timeout: float) -> None:
        """Pause, load, set the version, resume.

        No token carries the version of other weights: unless the weights in use are certain, they are labelled as
        broken before the server is resumed.
        """
        address = server.address
        if self._staged:
            with self._paused(address, timeout):
                self._drop_cache(address, timeout)
                self._load_staged(address, version, timeout)
                with self._label_of_broken(address, timeout):
                    self._post(address, "/finish_weight_update", timeout, {"weight_version": str(version)})
            return
        received, folder = self._folders.pop(server.incarnation, (None, ""))
        if received != version:
            raise ServerError(f"server {address}: commit of version {version}: found {received} received")
        if not self._adapters.are_received(server):
            self._load_folder(address, folder, timeout, version=version)
            return
        if self._adapters.needs_adapted(server):
            self._load_folder(address, folder, timeout)
            self._adapters.has_loaded_adapted(server)
        self._load_adapter(server, version, folder, timeout)

    def _load_adapter(self, server: ServerRecord, version: int, folder: str, timeout: float) -> None:
        """Load the adapter of a version, which requests name from now on, and forget the oldest."""
        call_of = {"token": self._token, "timeout": timeout}
        if self._adapters.forget(server, version):
            unload_adapter(server.address, version, **call_of)
        load_adapter(server.address, version, folder, **call_of)
        self._post(server.address, "/update_weight_version", timeout, {"new_version": str(version)})
        for old in self._adapters.has_loaded(server, version):
            unload_adapter(server.address, old, **call_of)

    def _load_folder(self, address: str, folder: str, timeout: float, *, version: int | None = None) -> None:
        """Let vLLM read all weights from a folder. ``None`` leaves the label of the version as it is."""
        with self._paused(address, timeout):
            # A server that started without weights has no files to reload, unless it is told otherwise.
            formats = {"method": "update_config", "args": [{"load_config": {"load_format": "auto"}}]}
            self._post(address, "/collective_rpc", timeout, formats)
            self._drop_cache(address, timeout)
            with self._label_of_broken(address, timeout):
                body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
                self._post(address, "/collective_rpc", timeout, body)
                if version is not None:
                    self._post(address, "/update_weight_version", timeout, {"new_version": str(version)})

    def abort_update(self, server: ServerRecord, version: int, *, timeout: float) -> None:
        """Drop what was received."""
        if not self._staged:
            if self._folders.get(server.incarnation, (None, ""))[0] == version:
                del self._folders[server.incarnation]
            return
        self._workers(server.address, "archon_abort", timeout, version)
        self._end_session(server.address, timeout)

    @contextmanager
    def _paused(self, address: str, timeout: float) -> Iterator[None]:
        """Pause while the weights change. The server is resumed whatever happens."""
        try:
            self._post(address, "/pause?mode=keep", timeout)
            yield
        finally:
            self._post(address, "/resume", timeout)

    def _load_staged(self, address: str, version: int, timeout: float) -> None:
        """Load the staged weights. After a failure, the workers' state decides which weights are in use."""
        try:
            self._act(address, "commit", version, timeout)
        except ServerError as error:
            with self._label_of_broken(address, timeout):
                workers = self._workers(address, "archon_state", timeout)
                if isinstance(error, UncertainCallError):
                    # Another trainer's weights may have the same version: only those still prepared are not in use.
                    if all(w["version"] == version and w["prepared"] is None and not w["broken"] for w in workers):
                        return
                    self._workers(address, "archon_abort", timeout, version)  # workers refuse the commit from now on
                    workers = self._workers(address, "archon_state", timeout)
                if any(worker["broken"] or worker["version"] == version for worker in workers):
                    raise
            raise

    @contextmanager
    def _label_of_broken(self, address: str, timeout: float) -> Iterator[None]:
        """Label the weights as broken if the body fails, because it leaves unknown ones."""
        try:
            yield
        except ServerError:
            with suppress(ServerError):
                self._post(address, "/update_weight_version", timeout, {"new_version": BROKEN_LABEL})
            raise

    def _drop_cache(self, address: str, timeout: float) -> None:
        """Drop the KV cache, before the weights change; running requests recompute theirs on resume."""
        answer = self._post(address, "/reset_prefix_cache?reset_running_requests=true", timeout)
        if not answer.get("success"):
            raise ServerError(f"server {address}: it does not drop the KV cache of the old weights, so it keeps these")

    def _state(self, address: str, *, timeout: float) -> ServerState:
        label = self._read(address, "/weight_info", "weight_version", timeout)
        paused = self._read(address, "/is_paused", "is_paused", timeout)
        if not self._staged:
            config = self._read(address, "/server_info?config_format=json", "vllm_config", timeout)
            return ServerState(str(config["instance_id"]), version_of(label), paused)
        worker = self._workers(address, "archon_state", timeout)[0]
        return ServerState(
            worker["incarnation"], version_of(label), paused, prepared=worker["prepared"], updating=worker["updating"]
        )

    def _receipt(self, address: str, timeout: float) -> Receipt:
        """The receipt that all workers of a server agree on."""
        first, *others = self._workers(address, "archon_receipt", timeout)
        different = [number for number, other in enumerate(others, start=1) if other != first]
        if different:
            raise ServerError(f"server {address}: worker {different[0]} holds other weights than worker 0; restart it")
        return Receipt.from_data(first)

    def _end_session(self, address: str, timeout: float) -> None:
        """End vLLM's session of an update that was neither committed nor aborted."""
        workers = self._workers(address, "archon_state", timeout)
        for version in {worker["updating"] for worker in workers} - {None}:
            self._workers(address, "archon_abort", timeout, version)
        if any(worker["session"] for worker in workers):
            try:
                self._post(address, "/finish_weight_update", timeout, {"weight_version": None})
            except UncertainCallError:
                raise
            except ServerError as error:
                # A worker whose session ended with an error refuses to end it again; the others have ended theirs.
                if "without a matching start" not in str(error):
                    raise

    def _act(self, address: str, action: str, data: Any, timeout: float) -> None:
        self._post(address, "/update_weights", timeout, {"update_info": {"action": action, "data": data}})

    def _workers(self, address: str, method: str, timeout: float, *arguments: Any) -> list[dict[str, Any]]:
        body = {"method": method, "args": list(arguments)}
        answer = self._post(address, "/collective_rpc", timeout, body)
        results = answer.get("results") if isinstance(answer, dict) else None
        if not results or not all(isinstance(result, dict) for result in results):
            raise ServerError(
                f"server {address}: {method} answered {answer}; vLLM needs archon-vllm in its environment, and the "
                "options with which archon starts it"
            )
        return results

    def _read(self, address: str, path: str, field: str, timeout: float) -> Any:
        answer = call(address, "GET", path, token=self._token, timeout=timeout)
        return field_of(answer, field, address=address, path=path)

    def _post(self, address: str, path: str, timeout: float, data: Any = None) -> Any:
        return call(address, "POST", path, {} if data is None else data, token=self._token, timeout=timeout)


def _sample_ids(request_id: str, n_samples: int) -> list[str]:
    return [f"{request_id}-{sample}" for sample in range(n_samples)]
