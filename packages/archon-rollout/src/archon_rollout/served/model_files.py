"""What a server needs to build the trainer's model without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archon_core.contracts.engine import TrainEngine
from archon_core.errors import ConfigError
from archon_core.serving.model_folder import Architecture
from archon_engine.models.hf_config import config_file
from archon_rollout.publication.adapters import write_adapter


def write_architecture(trainer: TrainEngine, folder: Path, adapter: Mapping[str, Any] | None = None) -> Architecture:
    """Write the model's ``config.json``, without which no server can start.

    Args:
        trainer: the engine that trains the model.
        folder: where to write it; it is created.
        adapter: configuration of adapters that are published apart; ``None`` without.

    Raises:
        ConfigError: the trainer's engine does not tell its configuration.
    """
    config = getattr(trainer, "hf_config", None)
    if config is None:
        raise ConfigError(
            f"rollout.backend: found the training engine {type(trainer).__name__}, which does not tell its model's "
            "configuration; use actor.backend=archon:... or fsdp:..."
        )
    folder.mkdir(parents=True, exist_ok=True)
    dtype = trainer.weight_manifest().tensors[0].dtype
    text = config_file(config, critic=False, dtype=dtype)
    (folder / "config.json").write_text(text, encoding="utf-8")
    if adapter is not None:
        write_adapter(adapter, folder)
    selection = getattr(trainer, "selection", None)
    named = selection is not None and selection.model is not None
    architecture = Architecture(folder, dtype, selection.model.name if named else "")
    architecture.write_hints()
    return architecture
