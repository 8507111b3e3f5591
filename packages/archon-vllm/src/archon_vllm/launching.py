"""The command that starts a vLLM server."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from archon_core.errors import ConfigError
from archon_core.layout import Layout
from archon_core.serving.model_folder import has_tokenizer, has_weights
from archon_core.serving.record import ServerLaunch
from archon_vllm.options import VllmOptions, command_options

MODEL_NAME = "default"
"""Name under which the model is served."""


def launch_server(
    model: str,
    *,
    layout: Layout,
    host: str,
    port: int,
    dtype: str,
    transport: str,
    routed_experts: bool,
    options: VllmOptions,
    token: str,
    loads_adapters: bool = False,
) -> ServerLaunch:
    """The command and environment of one server of a layout.

    Args:
        model: path or hub id. In a folder without weights, vLLM starts with random ones.
        layout: ``t`` and ``p`` are the ranks of a server.
        host: address to listen on.
        port: port to listen on.
        dtype: the trainer's compute dtype; empty if unknown.
        transport: of weights.
        routed_experts: whether completions carry the experts of every token.
        options: the section ``vllm``.
        token: the run's secret, in the environment of the server.
        loads_adapters: whether adapters are loaded while it runs.

    Raises:
        ConfigError: the port is 0.
    """
    if port == 0:
        raise ConfigError("vllm: found port 0; allowed is a free port, because vLLM does not report its choice")
    tensor, pipeline = layout.dims["t"], layout.dims["p"]
    model = options.model or model
    command = [options.python or sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]
    command += ["--host", host, "--port", str(port), "--served-model-name", MODEL_NAME]
    command += ["--tensor-parallel-size", str(tensor), "--pipeline-parallel-size", str(pipeline)]
    # Log-probabilities of the tempered distribution, as a trainer computes them.
    command += ["--enable-scale-out", "--logprobs-mode", "processed_logprobs"]
    command += ["--dtype", options.dtype if options.dtype != "auto" else dtype or "auto"]
    if options.max_model_len is not None:
        command += ["--max-model-len", str(min(options.max_model_len, _longest_context(model)))]
    if Path(model).is_dir():
        command += [] if has_weights(Path(model)) else ["--load-format", "dummy"]
        command += ["--skip-tokenizer-init"] if options.skip_tokenizer_init or not has_tokenizer(Path(model)) else []
    elif options.skip_tokenizer_init:
        command.append("--skip-tokenizer-init")
    if transport != "disk":
        command += ["--weight-transfer-config", f'{{"backend":"archon_{transport}"}}']
        command += ["--worker-extension-cls", "archon_vllm.in_server.worker.ArchonWorkerExtension"]
    if routed_experts:
        command.append("--enable-return-routed-experts")
    environment = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if loads_adapters:
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if token:
        environment["VLLM_API_KEY"] = token
    if options.python:
        environment["PYTHONPATH"] = ""  # it would bring the trainer's torch and transformers into vLLM's environment
    return ServerLaunch((*command, *command_options(options)), environment, n_processes=tensor * pipeline)


def _longest_context(model: str) -> float:
    """The model's context length, above which vLLM refuses to start; infinite if unknown, or extended by scaling."""
    try:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return float("inf")
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        return float("inf")
    return config.get("max_position_embeddings") or float("inf")
