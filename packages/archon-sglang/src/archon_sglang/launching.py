"""The command that starts an SGLang server."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

from archon_core.errors import ConfigError
from archon_core.layout import Layout
from archon_core.serving.model_folder import has_tokenizer, has_weights
from archon_core.serving.record import ServerLaunch
from archon_sglang.options import SglangOptions, command_options, ranks_problem


def launch_server(
    model: str,
    *,
    layout: Layout,
    host: str,
    port: int,
    dtype: str,
    routed_experts: bool,
    options: SglangOptions,
    loads_adapters: bool = False,
) -> ServerLaunch:
    """The command of one server of a layout.

    Args:
        model: path or hub id. In a folder without weights, SGLang starts with random ones.
        layout: ``t`` is the number of ranks of a server.
        host: address to listen on.
        port: port to listen on.
        dtype: the trainer's compute dtype; empty if unknown.
        routed_experts: whether completions carry the experts of every token.
        options: the section ``sglang``.
        loads_adapters: whether adapters are loaded while it runs.

    Raises:
        ConfigError: the port is 0, or an option does not divide the ranks of a server.
    """
    if port == 0:
        raise ConfigError("sglang: found port 0; allowed is a free port, because SGLang does not report its choice")
    if problem := ranks_problem(options, layout):
        raise ConfigError(problem)
    tensor = layout.dims["t"]
    command = [options.python or sys.executable, "-m", "sglang.launch_server"]
    model = options.model_path or model
    command += ["--model-path", model, "--host", host, "--port", str(port)]
    command += ["--dtype", options.dtype if options.dtype != "auto" else dtype or "auto"]
    folder = Path(model)
    random = options.load_format == "auto" and folder.is_dir() and not has_weights(folder)
    command += ["--load-format", "dummy" if random else options.load_format]
    if options.skip_tokenizer_init or (folder.is_dir() and not has_tokenizer(folder)):
        command.append("--skip-tokenizer-init")
    # The name comes back in /model_info, and tells this start from others on the same address.
    command += ["--tp-size", str(tensor), "--served-model-name", f"archon-{uuid.uuid4().hex}"]
    if routed_experts or options.enable_return_routed_experts:
        command.append("--enable-return-routed-experts")
    if loads_adapters and not options.lora_paths:
        # Without an adapter at its start, a server must know what adapters may adapt.
        command += ["--lora-target-modules", "all"]
    # The trainer's path would bring its torch and transformers into another environment.
    environment = {"PYTHONPATH": ""} if options.python else {}
    return ServerLaunch((*command, *command_options(options)), environment, n_processes=tensor)
