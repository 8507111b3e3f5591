"""What ``--from-hf`` names: a ``config.json``, a checkpoint folder or a hub id."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archon_core.errors import ModelError
from archon_core.models.hf_config import architecture_name, checkpoint_folder, load_hf_config

MINIMAL: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
"""What a package starts from when nothing is named."""


@dataclass(frozen=True)
class HFSource:
    """A configuration, as it was written and as ``transformers`` reads it.

    Attributes:
        entries: of the ``config.json``, ``model_type`` among them.
        config: the ``transformers`` configuration.
        causal_class: ``transformers``' class for the language model.
        critic_class: its class with a score per sequence, as which critics are saved; empty when it has none.
    """

    entries: Mapping[str, Any]
    config: Any
    causal_class: str
    critic_class: str

    @property
    def model_type(self) -> str:
        """Of the configuration."""
        return self.entries["model_type"]


def read_source(source: str | None) -> HFSource:
    """Read what the user named; a small Llama when that is nothing.

    Raises:
        ModelError: it is no configuration, or ``transformers`` has no language model of its type.
    """
    entries = dict(MINIMAL) if source is None else _entries(source)
    config = load_hf_config(entries)
    try:
        text = config.get_text_config()
    except ValueError:  # transformers finds several
        text = None
    if text is not config:
        its_type = "" if text is None else f" (model_type {text.model_type!r})"
        raise ModelError(
            f"{source}: found {config.model_type!r}, which holds a language model beside other parts; write its "
            f"text_config{its_type} to a config.json of its own"
        )
    try:
        causal = architecture_name(config.model_type, critic=False)
    except ModelError as error:
        raise ModelError(
            f"{source}: found model_type {config.model_type!r}, of which transformers has no causal language model; "
            "give the configuration of one"
        ) from error
    try:
        critic = architecture_name(config.model_type, critic=True)
    except ModelError:
        critic = ""
    return HFSource({**entries, "model_type": config.model_type}, config, causal, critic)


def _entries(source: str) -> dict[str, Any]:
    path = Path(source).expanduser()
    if not path.is_file():
        path = checkpoint_folder(source, weights=False) / "config.json"
    if not path.is_file():
        raise ModelError(f"{source}: found no config.json in that folder; give one, or a folder that holds one")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: found no readable JSON ({error}); give a Hugging Face config.json") from error
    if not isinstance(entries, dict) or not isinstance(entries.get("model_type"), str):
        raise ModelError(f"{path}: found no model_type; give a Hugging Face config.json")
    return entries
