"""Plugin registration of archon-vllm. Imports neither torch nor vLLM: targets are loaded on use."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.contracts.spec import ConfigSection
from archon_core.plugins import ServerDriverSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_server_drivers() -> Iterable[ServerDriverSpec]:
    return [
        ServerDriverSpec(
            name="vllm",
            target="archon_vllm.driver:VllmDriver",
            summary="vLLM 0.32: weights are staged in host memory and verified, then loaded while generation is paused",
            letters="dtp",
            transports=("shm", "distributed", "disk"),
            one_rank=("distributed",),
            adapter_folders=("disk",),
            check="archon_vllm.checks:check_run",
            config=(ConfigSection("vllm", "archon_vllm.options:VllmOptions"),),
        )
    ]
