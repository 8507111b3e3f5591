"""What a configuration names on this machine: checkpoint folders, data files, and the models' own files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archon_core.contracts.engine_config import ROLES, EngineConfig
from archon_core.errors import ArchonError
from archon_core.models.end_tokens import config_ends, folder_ends
from archon_train.run_plan import Obstacle

if TYPE_CHECKING:
    from archon_train.experiment import ExperimentConfig

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def file_problems(config: ExperimentConfig) -> tuple[list[Obstacle], list[str]]:
    """Obstacles, and notes about models that are fetched from the hub."""
    obstacles = [Obstacle(text, "config") for text in _end_token_problems(config.actor)]
    notes: list[str] = []
    seen: set[str] = set()
    for role in ROLES:
        path = getattr(getattr(config, role), "path", None)
        if not path or path in seen:
            continue
        seen.add(path)
        if _is_folder(path):
            continue
        if _is_local(path) or not _HUB_ID.fullmatch(path):
            text = f"{role}.path: found no folder {path!r}; give a checkpoint folder or a hub id (owner/name)"
            obstacles.append(Obstacle(text, "environment"))
        else:
            notes.append(f"{role}.path: {path} is not a local folder; it is fetched from the hub unless cached")
    others = {
        "data.path": config.data.path,
        "data.validation_path": config.data.validation_path,
        "tokenizer_path": config.tokenizer_path,
    }
    for option, path in others.items():
        if path and path not in seen and _is_local(path) and not _is_there(path):
            text = f"{option}: found no file or folder {path!r}; give an existing one"
            obstacles.append(Obstacle(text, "environment"))
        seen.add(path or "")
    return obstacles, notes


def _end_token_problems(actor: EngineConfig) -> list[str]:
    """Problems of the model's list of end tokens, if its files are on this machine."""
    try:
        if actor.model_config is not None:
            config_ends(actor.model_config, "actor.model_config")
        elif actor.path and _is_folder(actor.path):
            folder_ends(Path(actor.path).expanduser())
    except ArchonError as error:
        return [str(error)]
    return []


def model_entries(config: EngineConfig) -> Mapping[str, Any]:
    """The model's ``config.json`` if it is on this machine, else empty."""
    entries = config.model_config
    if entries is None and config.path:
        try:
            entries = json.loads((Path(config.path).expanduser() / "config.json").read_text(encoding="utf-8"))
        except (OSError, RuntimeError, ValueError):
            return {}  # not here, or damaged: loading reports it
    return entries if isinstance(entries, dict) else {}


def model_type_of(config: EngineConfig) -> str | None:
    """The model's type, if it is known locally."""
    model_type = model_entries(config).get("model_type")
    return model_type if isinstance(model_type, str) else None


def _is_folder(path: str) -> bool:
    try:
        return Path(path).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):  # no permission, an unknown user's home, a NUL character
        return False


def _is_there(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def _is_local(path: str) -> bool:
    return path.startswith(("/", "./", "../", "~")) or path.count("/") > 1 or path.endswith((".jsonl", ".json"))
