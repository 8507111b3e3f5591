"""What a Hugging Face folder has beside ``config.json``, for drivers that start servers on it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

HINTS = "archon.json"
"""File that tells servers of other machines what ``config.json`` does not."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def has_weights(folder: Path) -> bool:
    """Whether the folder has weights. The trainer's own has ``config.json`` alone: weights are published."""
    return any(next(folder.glob(pattern), None) is not None for pattern in ("*.safetensors", "*.bin"))


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has a tokenizer."""
    return any((folder / name).exists() for name in TOKENIZER_FILES)


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

    def write_hints(self) -> None:
        """Write the other fields into the folder, for launchers that start servers on other machines."""
        temporary = self.folder / f".{HINTS}"
        temporary.write_text(json.dumps({"dtype": self.dtype, "model_spec": self.model_spec}), encoding="utf-8")
        temporary.replace(self.folder / HINTS)

    @classmethod
    def read(cls, folder: Path) -> Architecture | None:
        """The architecture that a trainer has written; ``None`` before it has."""
        try:
            hints = json.loads((folder / HINTS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return cls(folder, hints["dtype"], hints["model_spec"])
