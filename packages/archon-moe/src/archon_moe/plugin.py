"""Registers the mixture-of-experts block ``moe`` and its options. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.contracts.engine_config import ROLES
from archon_core.plugins import ConfigSection, MoESpec, hookimpl

ARCHON_PLUGIN_API = "1.0"

_OPTIONS = "archon_moe.options:MoEOptions"


@hookimpl
def archon_moe() -> Iterable[MoESpec]:
    return [
        MoESpec(
            name="moe",
            target="archon_moe.builder:MoEBlocks",
            summary="any ep x etp, all-to-all dispatch, grouped experts, balancing by loss or bias",
            check="archon_moe.options:check_options",
            config=tuple(ConfigSection(f"{role}.archon", _OPTIONS) for role in ROLES),
        )
    ]
