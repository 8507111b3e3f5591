"""What a server needs to build the trainer's model without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from archon_core.contracts.engine import TrainEngine
from archon_core.errors import ConfigError
from archon_engine.models.hf_config import config_file


@dataclass(frozen=True)
class Architecture:
    """The model that servers serve: an architecture, or frozen weights.

    Attributes:
        folder: has ``config.json``; for frozen weights a checkpoint folder or hub id.
        dtype: compute dtype; empty for the servers' default.
        model_spec: name of the ``ModelSpec`` that runs it; empty for the one that serves its type.
    """

    folder: Path
    dtype: str
    model_spec: str = ""


def write_architecture(trainer: TrainEngine, folder: Path) -> Architecture:
    """Write the model's ``config.json``, without which no server can start.

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
    selection = getattr(trainer, "selection", None)
    named = selection is not None and selection.model is not None
    return Architecture(folder, dtype, selection.model.name if named else "")
