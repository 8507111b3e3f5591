"""What a Hugging Face folder has beside ``config.json``, for drivers that start servers on it."""

from __future__ import annotations

from pathlib import Path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def has_weights(folder: Path) -> bool:
    """Whether the folder has weights. The trainer's own has ``config.json`` alone: weights are published."""
    return any(next(folder.glob(pattern), None) is not None for pattern in ("*.safetensors", "*.bin"))


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has a tokenizer."""
    return any((folder / name).exists() for name in TOKENIZER_FILES)
