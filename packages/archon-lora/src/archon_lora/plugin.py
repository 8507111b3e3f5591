"""Registers the adapter ``lora`` and its options. Imports no torch."""

from __future__ import annotations

from archon_core.contracts.engine_config import ROLES
from archon_core.plugins import AdapterSpec, ConfigSection, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_adapters() -> list[AdapterSpec]:
    return [
        AdapterSpec(
            name="lora",
            target="archon_lora.adapter:LoraAdapter",
            summary="low-rank products beside frozen projections, on any layout, in PEFT's format",
            option="use_lora",
            preview="archon_lora.options:preview",
            file_options="archon_lora.options:file_options",
            file_type="LORA",
            config=tuple(ConfigSection(role, "archon_lora.options:LoraOptions") for role in ROLES),
        )
    ]
