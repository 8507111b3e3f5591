"""The command that starts an SGLang server."""

from __future__ import annotations

import sys
import uuid
from typing import Any

from archon_core.errors import ConfigError
from archon_core.layout import Layout
from archon_core.serving.record import ServerLaunch
from archon_sglang.options import SglangOptions, command_options


def launch_server(
    model: str, *, layout: Layout, host: str, port: int, rollout: Any, options: SglangOptions
) -> ServerLaunch:
    """The command of one server of a layout.

    Args:
        model: path or hub id.
        layout: ``t`` is the number of ranks of a server.
        host: address to listen on.
        port: port to listen on.
        rollout: the section ``rollout``.
        options: the section ``sglang``.

    Raises:
        ConfigError: the port is 0, or an option does not divide the ranks of a server.
    """
    if port == 0:
        raise ConfigError("sglang: found port 0; allowed is a free port, because SGLang does not report its choice")
    tensor = layout.dims["t"]
    for name in ("ep_size", "dp_size"):
        if tensor % getattr(options, name):
            raise ConfigError(
                f"sglang.{name}: found {getattr(options, name)}; allowed are divisors of {tensor}, the ranks of a "
                "server; set it to 1, or raise t in rollout.backend"
            )
    command = [options.python or sys.executable, "-m", "sglang.launch_server"]
    command += ["--model-path", options.model_path or model, "--host", host, "--port", str(port)]
    # The name comes back in /model_info, and tells this start from others on the same address.
    command += ["--tp-size", str(tensor), "--served-model-name", f"archon-{uuid.uuid4().hex}"]
    if rollout.return_routed_experts or options.enable_return_routed_experts:
        command.append("--enable-return-routed-experts")
    return ServerLaunch((*command, *command_options(options)), {}, n_processes=tensor)
