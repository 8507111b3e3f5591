"""Plugin registration of archon-sglang. Imports no torch: targets are loaded on use."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.contracts.spec import ConfigSection
from archon_core.plugins import ServerDriverSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_server_drivers() -> Iterable[ServerDriverSpec]:
    return [
        ServerDriverSpec(
            name="sglang",
            target="archon_sglang.driver:SglangDriver",
            summary="SGLang 0.5.23: loads published weights in place while generation is paused",
            letters="dt",
            transports=("disk",),
            adapter_folders=("disk",),
            check="archon_sglang.checks:check_run",
            config=(ConfigSection("sglang", "archon_sglang.options:SglangOptions"),),
        )
    ]
