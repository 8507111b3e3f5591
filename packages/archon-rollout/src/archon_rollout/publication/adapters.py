"""Adapters published apart from the weights that they adapt, and servers that receive them.

The trainer writes the adapters' configuration beside the ``config.json`` from which servers build the model, so a
server has the same tensors as the trainer. The weights that are adapted reach it once; later versions keep them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archon_core.contracts.adapters import AdapterSpec
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine import TrainEngine, TrainsAdapters
from archon_core.contracts.rollout import RolloutConfig
from archon_core.contracts.serving import ServerDriverSpec
from archon_core.contracts.spec import load_target
from archon_core.errors import ConfigError
from archon_core.plugins import registry
from archon_core.serving.adapter_versions import CONFIG_FILE
from archon_engine.options.archon import ArchonEngineConfig


def publish_apart(
    config: RolloutConfig, kind: ServerDriverSpec, trainer: TrainEngine
) -> tuple[Mapping[str, Any] | None, list[Decision]]:
    """Let the trainer publish its adapters apart, if the options say so. All processes of the trainer call it.

    Args:
        config: the section ``rollout``, with its transport chosen.
        kind: of the servers.
        trainer: trains the adapters.

    Returns:
        The adapters' configuration, ``None`` if merged weights are published; and decisions.
    """
    if not config.use_lora:
        return None, []
    if not kind.adapters and config.weight_transport not in kind.adapter_folders:
        reason = f"servers of the kind {kind.name} get merged weights, which need nothing on their side"
        if kind.adapter_folders:
            reason = f"with {config.weight_transport} {reason}; they take adapters by {', '.join(kind.adapter_folders)}"
        return None, [Decision("rollout.use_lora", "true", "merged weights", reason)]
    described = trainer.publish_apart() if isinstance(trainer, TrainsAdapters) else None
    if described is None:
        return None, [Decision("rollout.use_lora", "true", "no effect", "the actor trains no adapters")]
    return described, []


def write_adapter(described: Mapping[str, Any], folder: Path) -> None:
    """Write the adapters' configuration beside the model's."""
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def adapted(config: ArchonEngineConfig, folder: Path) -> ArchonEngineConfig:
    """The section of a server's engine with the adapters that a trainer described in ``folder``; unchanged without.

    Raises:
        ConfigError: no installed package has adapters of this kind.
    """
    if not (folder / CONFIG_FILE).is_file():
        return config
    described = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    found = [spec for spec in registry().all(AdapterSpec) if spec.file_type == described.get("peft_type")]
    if not found:
        raise ConfigError(
            f"--model: {folder / CONFIG_FILE} describes adapters of type {described.get('peft_type')!r}; allowed are "
            "those of installed packages; install archon-lora"
        )
    [spec] = found
    schema = load_target(next(section.schema for section in spec.config), origin=spec.origin)
    kind = dataclass(type("AdaptedModel", (schema, ArchonEngineConfig), {}))
    return kind(**vars(config), **load_target(spec.file_options, origin=spec.origin)(described))
