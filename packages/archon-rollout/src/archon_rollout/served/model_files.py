"""What a server needs to build the trainer's model without its weights."""

from __future__ import annotations

import json
from pathlib import Path

from archon_core.contracts.engine import TrainEngine
from archon_core.errors import ConfigError


def write_architecture(trainer: TrainEngine, folder: Path) -> tuple[Path, list[str]]:
    """Write the model's ``config.json``; returns it with the options of ``archon serve`` that fit the trainer.

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
    path = folder / "config.json"
    path.write_text(json.dumps(config.to_dict(), indent=2, default=str), encoding="utf-8")
    options = ["--dtype", trainer.weight_manifest().tensors[0].dtype]
    selection = getattr(trainer, "selection", None)
    if selection is not None and selection.model is not None:
        options += ["--run-as", selection.model.name]
    return path, options
