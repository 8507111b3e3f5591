"""The command that starts a vLLM server."""

from __future__ import annotations

import sys
from typing import Any

from archon_core.errors import ConfigError
from archon_core.layout import Layout
from archon_core.serving.record import ServerLaunch
from archon_vllm.options import VllmOptions, command_options

MODEL_NAME = "default"
"""Name under which the model is served."""


def launch_server(
    model: str, *, layout: Layout, host: str, port: int, rollout: Any, options: VllmOptions, token: str
) -> ServerLaunch:
    """The command and environment of one server of a layout.

    Args:
        model: path or hub id.
        layout: ``t`` and ``p`` are the ranks of a server.
        host: address to listen on.
        port: port to listen on.
        rollout: the section ``rollout``.
        options: the section ``vllm``.
        token: the run's secret, in the environment of the server.

    Raises:
        ConfigError: the port is 0.
    """
    if port == 0:
        raise ConfigError("vllm: found port 0; allowed is a free port, because vLLM does not report its choice")
    tensor, pipeline = layout.dims["t"], layout.dims["p"]
    command = [options.python or sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", options.model or model]
    command += ["--host", host, "--port", str(port), "--served-model-name", MODEL_NAME]
    command += ["--tensor-parallel-size", str(tensor), "--pipeline-parallel-size", str(pipeline)]
    # Log-probabilities of the tempered distribution, as a trainer computes them.
    command += ["--enable-scale-out", "--logprobs-mode", "processed_logprobs"]
    if rollout.weight_transport != "disk":
        command += ["--weight-transfer-config", f'{{"backend":"archon_{rollout.weight_transport}"}}']
        command += ["--worker-extension-cls", "archon_vllm.in_server.worker.ArchonWorkerExtension"]
    if rollout.return_routed_experts:
        command.append("--enable-return-routed-experts")
    environment = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if token:
        environment["VLLM_API_KEY"] = token
    return ServerLaunch((*command, *command_options(options)), environment, n_processes=tensor * pipeline)
